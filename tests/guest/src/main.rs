//! The init of the guest.
fn main() {}
