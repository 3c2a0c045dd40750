//! Loads the kernel modules that lie in the initramfs.

use std::ffi::CString;
use std::fs::{self, File};

use nix::kmod::{ModuleInitFlags, finit_module};

use crate::system::Error;

/// One path a line, dependencies first. Absent when the kernel has everything built in.
const LIST: &str = "/modules.list";

/// Loads them in the list's order.
pub fn load_listed() -> Result<(), Error> {
    let list = fs::read_to_string(LIST).unwrap_or_default();
    list.lines().try_for_each(load)
}

fn load(path: &str) -> Result<(), Error> {
    let file = File::open(path).map_err(Error::file("open", path))?;
    match finit_module(&file, &CString::default(), ModuleInitFlags::empty()) {
        Ok(()) | Err(nix::Error::EEXIST) => Ok(()),
        Err(errno) => Err(Error::file("load", path)(errno.into())),
    }
}
