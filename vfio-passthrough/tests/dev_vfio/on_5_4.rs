//! The same tests on the rules of 5.4.
#![allow(clippy::duplicate_mod, reason = "the tests are those of other modules")]

use super::*;

const KERNELS: [Kernel; 2] = [Kernel::Linux5_4; 2];
const INTERFACES: &[Interface] = &[Interface::Type1];

#[path = "groups.rs"]
mod groups;
#[path = "plugged.rs"]
mod plugged;
