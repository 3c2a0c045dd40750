//! Functions without a driver: their config space, and their registers by physical address.

use std::fs::{self, File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt as _;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::system::{Error, read};

const DEVICES: &str = "/sys/bus/pci/devices";

/// Offsets and bits of config space (PCI 3.0, 6.1 and 6.2).
pub const COMMAND: u64 = 0x04;
pub const IO: u16 = 1;
pub const MEMORY: u16 = 1 << 1;
pub const BUS_MASTER: u16 = 1 << 2;
pub const BAR0: u64 = 0x10;
const CAPABILITIES: u64 = 0x34;

/// Config space, past any driver.
pub struct Config {
    address: String,
    file: File,
}

impl Config {
    /// Of a function, which is taken from its driver.
    pub fn open(address: &str) -> Result<Self, Error> {
        let folder = format!("{DEVICES}/{address}");
        let unbind = format!("{folder}/driver/unbind");
        // ENOENT: it has none.
        let _ = fs::write(&unbind, address);
        let path = format!("{folder}/config");
        let file = OpenOptions::new().read(true).write(true).open(&path);
        Ok(Self { address: address.to_owned(), file: file.map_err(Error::file("open", &path))? })
    }

    /// Some bytes.
    pub fn read<const N: usize>(&self, offset: u64) -> Result<[u8; N], Error> {
        let mut data = [0; N];
        let done = self.file.read_exact_at(&mut data, offset);
        done.map_err(Error::file("read config of", &self.address))?;
        Ok(data)
    }

    /// Some bytes.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.file.write_all_at(data, offset).map_err(Error::file("write config of", &self.address))
    }

    /// The command register.
    pub fn command(&self) -> Result<u16, Error> {
        Ok(u16::from_le_bytes(self.read(COMMAND)?))
    }

    /// Sets bits of the command register, or clears them.
    pub fn set_command(&self, bits: u16, on: bool) -> Result<(), Error> {
        let command = self.command()?;
        let command = if on { command | bits } else { command & !bits };
        self.write(COMMAND, &command.to_le_bytes())
    }

    /// Where a capability is, if the function has it.
    pub fn capability(&self, id: u8) -> Result<Option<u64>, Error> {
        let [mut at] = self.read(CAPABILITIES)?;
        for _ in 0..48 {
            if at < 0x40 {
                break;
            }
            let [own, next] = self.read(at.into())?;
            if own == id {
                return Ok(Some(at.into()));
            }
            at = next & 0xfc;
        }
        Ok(None)
    }

    /// First address of a BAR, as the guest's kernel knows it.
    pub fn bar(&self, index: usize) -> Result<(u64, u64), Error> {
        let path = format!("{DEVICES}/{}/resource", self.address);
        let text = read(&path)?;
        let line = text.lines().nth(index).unwrap_or_default();
        let mut numbers = line
            .split_whitespace()
            .map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap_or_default());
        let (first, last) =
            (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        Ok((first, last.saturating_sub(first).saturating_add(1)))
    }
}

/// Registers, or memory, at a physical address.
pub struct Registers {
    mapping: NonNull<u8>,
    size: NonZeroUsize,
}

// SAFETY: the mapping is the process's, not a thread's, and is only accessed by volatile reads and writes.
unsafe impl Send for Registers {}
// SAFETY: as above; two threads that access one register meet in the device, as they would in hardware.
unsafe impl Sync for Registers {}

impl Registers {
    /// `size` bytes from `physical` on, in whole pages.
    pub fn at(physical: u64, size: u64) -> Result<Self, Error> {
        Self::map("/dev/mem", physical, size)
    }

    /// The first `size` bytes of a BAR, in whole pages, where the kernel knows it to be.
    pub fn of(address: &str, bar: usize, size: u64) -> Result<Self, Error> {
        Self::map(&format!("{DEVICES}/{address}/resource{bar}"), 0, size)
    }

    fn map(path: &str, offset: u64, size: u64) -> Result<Self, Error> {
        let wrong = || Error::file("map", path)(std::io::ErrorKind::InvalidInput.into());
        let size = usize::try_from(size).ok().and_then(NonZeroUsize::new).ok_or_else(wrong)?;
        let offset = i64::try_from(offset).map_err(|_| wrong())?;
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(Error::file("open", path))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses; nobody else knows it.
        let mapped = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, &file, offset) };
        let mapped = mapped.map_err(|errno| Error::file("map", path)(errno.into()))?;
        Ok(Self { mapping: mapped.cast(), size })
    }

    fn place<T>(&self, offset: usize) -> Option<NonNull<T>> {
        let end = offset.checked_add(size_of::<T>())?;
        let fits = end <= self.size.get() && offset.is_multiple_of(align_of::<T>());
        // SAFETY: the offset is within the mapping.
        fits.then(|| unsafe { self.mapping.byte_add(offset) }.cast())
    }

    /// A dword; all-ones where it is not within the registers, as on a bus where nothing answers.
    pub fn read(&self, offset: usize) -> u32 {
        // SAFETY: `place` gives an aligned address within the mapping, which lives as long as `self`.
        self.place(offset).map_or(u32::MAX, |place| unsafe { place.read_volatile() })
    }

    /// A dword.
    pub fn write(&self, offset: usize, value: u32) {
        self.put(offset, value);
    }

    /// A quadword, in one access.
    pub fn write_long(&self, offset: usize, value: u64) {
        self.put(offset, value);
    }

    fn put<T>(&self, offset: usize, value: T) {
        if let Some(place) = self.place(offset) {
            // SAFETY: `place` gives an aligned address within the mapping, which lives as long as `self`.
            unsafe { place.write_volatile(value) }
        }
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone, and nothing refers to it any more.
        let _ = unsafe { munmap(self.mapping.cast(), self.size.get()) };
    }
}
