//! The nested machine.
fn main() {}
