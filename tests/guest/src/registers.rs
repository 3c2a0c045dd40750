//! Config space and BARs of functions without a driver.

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

/// The config space of a function without a driver.
pub struct Config {
    address: String,
    file: File,
}

impl Config {
    /// Unbinds a function from its driver, and opens its config space.
    pub fn open(address: &str) -> Result<Self, Error> {
        let folder = format!("{DEVICES}/{address}");
        let unbind = format!("{folder}/driver/unbind");
        // It fails with ENOENT if the function has no driver.
        let _ = fs::write(&unbind, address);
        let path = format!("{folder}/config");
        let file = OpenOptions::new().read(true).write(true).open(&path);
        Ok(Self { address: address.to_owned(), file: file.map_err(Error::file("open", &path))? })
    }

    /// Reads `N` bytes at `offset`.
    pub fn read<const N: usize>(&self, offset: u64) -> Result<[u8; N], Error> {
        let mut data = [0; N];
        let done = self.file.read_exact_at(&mut data, offset);
        done.map_err(Error::file("read config of", &self.address))?;
        Ok(data)
    }

    /// Writes `data` at `offset`.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.file.write_all_at(data, offset).map_err(Error::file("write config of", &self.address))
    }

    /// Reads the command register.
    pub fn command(&self) -> Result<u16, Error> {
        Ok(u16::from_le_bytes(self.read(COMMAND)?))
    }

    /// Sets `bits` of the command register if `on`, else clears them.
    pub fn set_command(&self, bits: u16, on: bool) -> Result<(), Error> {
        let command = self.command()?;
        let command = if on { command | bits } else { command & !bits };
        self.write(COMMAND, &command.to_le_bytes())
    }

    /// The offset of a capability, if the function has it.
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

    /// The first address and the size of a BAR, as the guest's kernel knows them.
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

/// Mapped registers or memory of a BAR.
pub struct Registers {
    mapping: NonNull<u8>,
    size: NonZeroUsize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only accessed by volatile
// reads and writes.
unsafe impl Send for Registers {}
// SAFETY: as above; the device orders accesses of two threads to one register, as hardware does.
unsafe impl Sync for Registers {}

impl Registers {
    /// Maps `size` bytes, in whole pages, from the physical address `physical` on.
    pub fn at(physical: u64, size: u64) -> Result<Self, Error> {
        Self::map("/dev/mem", physical, size)
    }

    /// Maps the first `size` bytes of a BAR, in whole pages, at the address that the kernel knows.
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
        // SAFETY: this makes a new mapping at an address that the kernel chooses, so it replaces no
        // other.
        let mapped = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, &file, offset) };
        let mapped = mapped.map_err(|errno| Error::file("map", path)(errno.into()))?;
        Ok(Self { mapping: mapped.cast(), size })
    }

    /// The address of an aligned `T` at `offset`, if it is within the mapping.
    fn place<T>(&self, offset: usize) -> Option<NonNull<T>> {
        let end = offset.checked_add(size_of::<T>())?;
        let fits = end <= self.size.get() && offset.is_multiple_of(align_of::<T>());
        // SAFETY: `offset` is within the mapping.
        fits.then(|| unsafe { self.mapping.byte_add(offset) }.cast())
    }

    /// Reads a dword; all-ones if `offset` is outside of the mapping.
    pub fn read(&self, offset: usize) -> u32 {
        // SAFETY: `place` returns an aligned address within the mapping, which lives as long as
        // `self`.
        self.place(offset).map_or(u32::MAX, |place| unsafe { place.read_volatile() })
    }

    /// Writes a byte.
    pub fn write_byte(&self, offset: usize, value: u8) {
        self.put(offset, value);
    }

    /// Writes a dword.
    pub fn write(&self, offset: usize, value: u32) {
        self.put(offset, value);
    }

    /// Writes a quadword in one access.
    pub fn write_long(&self, offset: usize, value: u64) {
        self.put(offset, value);
    }

    fn put<T>(&self, offset: usize, value: T) {
        if let Some(place) = self.place(offset) {
            // SAFETY: `place` returns an aligned address within the mapping, which lives as long as
            // `self`.
            unsafe { place.write_volatile(value) }
        }
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: `self` made the mapping, and no reference to it is left.
        let _ = unsafe { munmap(self.mapping.cast(), self.size.get()) };
    }
}
