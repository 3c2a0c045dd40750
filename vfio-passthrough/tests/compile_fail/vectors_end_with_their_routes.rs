//! The irqfds, routes and GSIs of vectors go in one drop: nothing is delivered after it.

use vfio_passthrough::host::{MsiMessage, MsiVectors};

fn late(mut vectors: Box<dyn MsiVectors>) -> std::io::Result<()> {
    drop(vectors);
    vectors.update(&[(0, Some(MsiMessage::default()))])
}

fn main() {}
