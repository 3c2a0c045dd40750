//! Loads the kernel modules of the initramfs.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;

use nix::kmod::{ModuleInitFlags, finit_module};

use crate::system::{self, Error};

/// The list of modules: one path on each line, dependencies first. It is absent if the kernel has
/// no modules.
const LIST: &str = "/modules.list";

/// Loads the modules in the order of the list.
pub fn load_listed() -> Result<(), Error> {
    let list = fs::read_to_string(LIST).unwrap_or_default();
    let command_line = system::command_line()?;
    list.lines().try_for_each(|path| load(path, &command_line))
}

fn load(path: &str, command_line: &str) -> Result<(), Error> {
    let file = File::open(path).map_err(Error::file("open", path))?;
    let parameters = CString::new(parameters(path, command_line)).unwrap_or_default();
    match finit_module(&file, &parameters, ModuleInitFlags::empty()) {
        // Some drivers do not stay if there is no device for them.
        Ok(()) | Err(nix::Error::EEXIST | nix::Error::ENODEV) => Ok(()),
        Err(errno) => Err(Error::file("load", path)(errno.into())),
    }
}

/// The parameters of a module on the command line, such as `nvme_core.multipath=0`. The kernel
/// itself passes them only to built-in drivers.
fn parameters(path: &str, command_line: &str) -> String {
    let name = Path::new(path).file_stem().unwrap_or_default();
    let prefix = format!("{}.", name.to_string_lossy().replace('-', "_"));
    let own = command_line.split_whitespace().filter_map(|word| word.strip_prefix(&prefix));
    own.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_a_module_its_own_parameters() {
        let line = "quiet nvme_core.multipath=0 nvme.poll_queues=1 nvme_core.io_timeout=9";
        assert_eq!(parameters("/modules/nvme-core.ko", line), "multipath=0 io_timeout=9");
        assert_eq!(parameters("/modules/ahci.ko", line), "");
    }
}
