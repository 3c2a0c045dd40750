//! A borrowed eventfd of a pin cannot outlive the pin's connection.

use vfio_passthrough::host::IntxConnection;

fn late(connection: Box<dyn IntxConnection>) -> std::io::Result<()> {
    let trigger = connection.trigger();
    drop(connection);
    trigger.write(1)
}

fn main() {}
