//! Virtual functions of an NVMe (NVMe 1.4, 8.5), made with its driver in L1.

use std::fs::{self, File};
use std::io::{Error, ErrorKind, Result};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use nix::libc;

use crate::pci;

/// `NVME_IOCTL_ADMIN_CMD` and `NVME_IOCTL_RESET` (linux/nvme_ioctl.h).
const ADMIN_COMMAND: libc::Ioctl = 0xc048_4e41u32 as libc::Ioctl;
const RESET: libc::Ioctl = 0x4e44;
/// Words of `struct nvme_passthru_cmd`.
const COMMAND_WORDS: usize = 18;
/// The virtualization management command (NVMe 1.4, 5.22), its resources and its actions.
const VIRTUALIZATION: u32 = 0x1c;
const QUEUES: u32 = 0;
const VECTORS: u32 = 1;
const TAKE_FROM_PRIMARY: u32 = 1;
const ASSIGN: u32 = 8;
const ONLINE: u32 = 9;
/// The number of queues and of vectors of each function: an admin queue and two I/O queues.
const EACH: u32 = 3;

/// Makes `count` virtual functions of the NVMe at `address`, each with queues and vectors, and
/// without a driver.
pub fn enable(address: &str, count: u16) -> Result<()> {
    let folder = Path::new("/sys/bus/pci/devices").join(address);
    if fs::read_to_string(folder.join("sriov_numvfs"))?.trim() == count.to_string() {
        return Ok(());
    }
    if !folder.join("driver").exists() {
        pci::bind(address, Some("nvme"))?;
    }
    let controller = Controller::of(&folder)?;
    for resource in [VECTORS, QUEUES] {
        controller.manage(0, resource, TAKE_FROM_PRIMARY, 0)?;
    }
    controller.reset()?;
    fs::write(folder.join("sriov_drivers_autoprobe"), "0")?;
    fs::write(folder.join("sriov_numvfs"), count.to_string())?;
    for function in 1..=count.into() {
        controller.manage(function, VECTORS, ASSIGN, EACH)?;
        controller.manage(function, QUEUES, ASSIGN, EACH)?;
        controller.manage(function, QUEUES, ONLINE, 0)?;
    }
    Ok(())
}

/// Waits until the driver has started its controller. Before that it rejects commands with EAGAIN.
fn wait_until_live(state: &Path) -> Result<()> {
    for _ in 0..500 {
        if fs::read_to_string(state)?.trim() == "live" {
            return Ok(());
        }
        sleep(Duration::from_millis(10));
    }
    Err(Error::other(format!("{}: did not become live within 5 s", state.display())))
}

/// The device node of a controller.
struct Controller(File);

impl Controller {
    fn of(folder: &Path) -> Result<Self> {
        let entry = fs::read_dir(folder.join("nvme"))?.next().ok_or(ErrorKind::NotFound)??;
        wait_until_live(&entry.path().join("state"))?;
        File::open(Path::new("/dev").join(entry.file_name())).map(Self)
    }

    fn manage(&self, controller: u32, resource: u32, action: u32, number: u32) -> Result<()> {
        let mut command = [0_u32; COMMAND_WORDS];
        let [opcode, .., dword10, dword11, _, _, _, _, _, _] = &mut command;
        (*opcode, *dword10) = (VIRTUALIZATION, controller << 16 | resource << 8 | action);
        *dword11 = number;
        // SAFETY: the kernel reads and writes the 72 bytes of `command`, which outlives the call.
        let status =
            unsafe { libc::ioctl(self.0.as_raw_fd(), ADMIN_COMMAND, command.as_mut_ptr()) };
        match status {
            0 => Ok(()),
            -1 => Err(Error::last_os_error()),
            status => Err(Error::other(format!(
                "virtualization management, controller {controller}, resource {resource}, action {action}: status {status:#x}"
            ))),
        }
    }

    fn reset(&self) -> Result<()> {
        // SAFETY: the ioctl takes no argument.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), RESET) } {
            0 => Ok(()),
            _ => Err(Error::last_os_error()),
        }
    }
}
