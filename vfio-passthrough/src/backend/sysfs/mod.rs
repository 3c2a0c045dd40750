//! Reads sysfs: a device's group and driver, and a group's devices and reserved addresses. The root
//! is a parameter, so that tests run on fixture trees.

mod copy;
mod reserved;
mod source;
mod tree;

pub use reserved::{ReservedKind, ReservedRegion};
pub use source::Entry;
pub use tree::{Error, Sysfs};
