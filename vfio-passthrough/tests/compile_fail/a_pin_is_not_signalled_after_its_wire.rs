//! The eventfds of a pin do not outlive the wire by way of what they were borrowed from.

use vfio_passthrough::host::IntxConnection;

fn late(connection: Box<dyn IntxConnection>) -> std::io::Result<()> {
    let trigger = connection.trigger();
    drop(connection);
    trigger.write(1)
}

fn main() {}
