//! What sysfs says of a device: its group, its driver, its neighbours. The root is a parameter, so
//! that tests run on fixture trees.

mod reserved;
mod tree;

pub use reserved::{ReservedKind, ReservedRegion};
pub use tree::{Error, Sysfs};
