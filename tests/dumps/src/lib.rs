//! What guests see of devices of real machines: 168 functions in 38 files of the source package of
//! pciutils, whose config space someone dumped by `lspci -xxxx`.
//!
//! Each function becomes a device of `vfio-model`, which a guest gets and programs. Then the guest's
//! view is compared with the dump: each byte that differs has a reason that is known by name, and
//! `lspci` reads the view without a complaint.
//!
//! `cargo run -p dumps` prints docs/config-space.md, and `cargo run -p dumps -- FILE...` the table
//! of other dumps, such as one of your own machine (`lspci -vvxxxx`, as root).
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a check that fails panics"
)]

pub mod class;
pub mod device;
pub mod difference;
pub mod dump;
pub mod guest;
pub mod lists;
pub mod lspci;
pub mod page;
