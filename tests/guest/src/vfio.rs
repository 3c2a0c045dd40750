//! A function by the guest's own VFIO, without an IOMMU. It gives interrupts of devices for which
//! Linux has no driver.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::system::Error;

/// The base of VFIO's ioctl numbers (linux/vfio.h): `_IO(';', 100 + n)`.
const BASE: u16 = (b';' as u16) << 8 | 100;
const SET_IOMMU: u8 = 2;
const GROUP_SET_CONTAINER: u8 = 4;
const GROUP_GET_DEVICE_FD: u8 = 6;
const DEVICE_GET_REGION_INFO: u8 = 8;
const DEVICE_SET_IRQS: u8 = 10;
const NOIOMMU: usize = 8;
const CONFIG_REGION: u32 = 7;
/// `VFIO_PCI_MSI_IRQ_INDEX`, and the flags for eventfds as data and trigger as action.
const MSI: u32 = 1;
const TRIGGER_EVENTFD: u32 = 1 << 2 | 1 << 5;

/// The argument of an ioctl.
enum Argument<'a> {
    Number(usize),
    Text(&'a std::ffi::CStr),
    Words(&'a mut [u32]),
}

fn ioctl(file: &File, number: u8, argument: Argument<'_>) -> Result<i32, Error> {
    let request = libc::Ioctl::from(BASE.saturating_add(number.into()));
    let argument = match argument {
        Argument::Number(number) => number,
        Argument::Text(text) => text.as_ptr().expose_provenance(),
        Argument::Words(words) => words.as_mut_ptr().expose_provenance(),
    };
    // SAFETY: each request of this module takes the argument that it is given: a number; a string
    // that ends with zero; or a struct of words. Such a struct is a single fd, or begins with its
    // size in bytes, beyond which the kernel neither reads nor writes.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
    Errno::result(result)
        .map_err(|errno| Error::file("VFIO ioctl", &number.to_string())(errno.into()))
}

/// An open function, with its group and its container.
pub struct Function {
    device: File,
    bar0: u64,
    config: u64,
    msi: EventFd,
    _group: File,
    _container: File,
}

impl Function {
    /// Binds a function to vfio-pci, opens it, and turns MSI on.
    pub fn open(address: &str) -> Result<Self, Error> {
        let write =
            |path: &str, text: &str| fs::write(path, text).map_err(Error::file("write", path));
        write("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "1")?;
        let folder = format!("/sys/bus/pci/devices/{address}");
        write(&format!("{folder}/driver_override"), "vfio-pci")?;
        write("/sys/bus/pci/drivers_probe", address)?;
        let group = fs::read_link(format!("{folder}/iommu_group"));
        let group = group.map_err(Error::file("read the group of", address))?;
        let name = group.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let open = |path: &str| {
            let opened = OpenOptions::new().read(true).write(true).open(path);
            opened.map_err(Error::file("open", path))
        };
        let container = open("/dev/vfio/vfio")?;
        let group = open(&format!("/dev/vfio/noiommu-{name}"))?;
        let mut fd = [u32::try_from(container.as_raw_fd()).unwrap_or_default()];
        ioctl(&group, GROUP_SET_CONTAINER, Argument::Words(&mut fd))?;
        ioctl(&container, SET_IOMMU, Argument::Number(NOIOMMU))?;
        let text = std::ffi::CString::new(address).unwrap_or_default();
        let fd = ioctl(&group, GROUP_GET_DEVICE_FD, Argument::Text(&text))?;
        // SAFETY: the ioctl returned this fd, and nobody else owns it.
        let device = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
        let msi = EventFd::from_flags(EfdFlags::EFD_NONBLOCK);
        let msi = msi.map_err(|errno| Error::file("create", "an eventfd")(errno.into()))?;
        let words = &mut [
            24,
            TRIGGER_EVENTFD,
            MSI,
            0,
            1,
            u32::try_from(msi.as_raw_fd()).unwrap_or_default(),
        ];
        ioctl(&device, DEVICE_SET_IRQS, Argument::Words(words))?;
        let (bar0, config) = (region(&device, 0)?, region(&device, CONFIG_REGION)?);
        let function = Self { device, bar0, config, msi, _group: group, _container: container };
        // Turn memory decoding and bus mastering on.
        function.write_at(function.config, 4, &6_u16.to_le_bytes())?;
        Ok(function)
    }

    fn write_at(&self, region: u64, offset: u64, data: &[u8]) -> Result<(), Error> {
        let done = self.device.write_all_at(data, region.saturating_add(offset));
        done.map_err(Error::file("write", "a region"))
    }

    /// Reads a register of BAR0.
    pub fn read(&self, offset: u64) -> Result<u32, Error> {
        let mut data = [0; 4];
        let done = self.device.read_exact_at(&mut data, self.bar0.saturating_add(offset));
        done.map_err(Error::file("read", "a region"))?;
        Ok(u32::from_le_bytes(data))
    }

    /// Writes a register of BAR0.
    pub fn write(&self, offset: u64, value: u32) -> Result<(), Error> {
        self.write_at(self.bar0, offset, &value.to_le_bytes())
    }

    /// Waits up to 2 s for an interrupt, and returns the number of interrupts since the last call.
    pub fn interrupts(&self) -> u64 {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(2) {
            if let Ok(count) = self.msi.read() {
                return count;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        0
    }
}

/// The offset of a region in the device's file.
fn region(device: &File, index: u32) -> Result<u64, Error> {
    let mut words = [32, 0, index, 0, 0, 0, 0, 0];
    ioctl(device, DEVICE_GET_REGION_INFO, Argument::Words(&mut words))?;
    let [.., low, high] = words;
    Ok(u64::from(low) | u64::from(high) << 32)
}
