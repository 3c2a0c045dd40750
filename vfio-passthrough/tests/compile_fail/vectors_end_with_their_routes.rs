//! Vectors cannot be used after the drop that removes their irqfds, routes and GSIs.

use vfio_passthrough::host::{MsiMessage, MsiVectors};

fn late(mut vectors: Box<dyn MsiVectors>) -> std::io::Result<()> {
    drop(vectors);
    vectors.update(&[(0, Some(MsiMessage::default()))])
}

fn main() {}
