//! The argument of an ioctl: what it reads of the program's memory and writes into it.

use std::io;

use nix::errno::Errno;

use crate::memory;

/// `VFIO_TYPE`, and the first request (include/uapi/linux/vfio.h).
const FIRST_REQUEST: u64 = 0x3b64;

/// Requests beyond the last of iommufd do not exist.
const REQUESTS: u64 = 60;

/// A struct that states a larger size than this is read up to here.
const LARGEST: usize = 1 << 20;

/// The number of a request as the model counts, if it is one of VFIO or iommufd.
pub fn number_of(request: u64) -> Option<u32> {
    let number = request.checked_sub(FIRST_REQUEST)?;
    (number < REQUESTS).then(|| u32::try_from(number).ok()).flatten()
}

/// An argument, which the model reads and changes.
#[derive(Debug, Default)]
pub struct Argument {
    /// The struct, and an array behind it.
    pub bytes: Vec<u8>,
    /// The bytes as they are in the program's memory.
    before: Vec<u8>,
    /// Where the struct and the array are in the program's memory, and their lengths.
    places: Vec<(usize, usize)>,
}

impl Argument {
    /// Reads the argument of a request.
    pub fn read(number: u32, argument: usize) -> io::Result<Self> {
        let bytes = match number {
            // VFIO_GET_API_VERSION, VFIO_GROUP_UNSET_CONTAINER, VFIO_DEVICE_RESET
            0 | 5 | 11 => Vec::new(),
            // VFIO_CHECK_EXTENSION, VFIO_SET_IOMMU: the argument is a number.
            1 | 2 => argument.to_ne_bytes().to_vec(),
            // VFIO_GROUP_SET_CONTAINER
            4 => exactly(argument, 4)?,
            // VFIO_GROUP_GET_DEVICE_FD
            6 => return Ok(Self { bytes: name(argument)?, ..Self::default() }),
            _ => return Self::of_struct(number, argument),
        };
        Ok(Self { bytes, ..Self::default() })
    }

    /// A struct begins with its size.
    fn of_struct(number: u32, address: usize) -> io::Result<Self> {
        let size = word(&exactly(address, 4)?, 0) as usize;
        let mut bytes = memory::read(address, size.clamp(4, LARGEST))?;
        let mut places = vec![(address, bytes.len())];
        if let Some((address, length)) = array(number, &bytes) {
            let array = exactly(address, length.min(LARGEST))?;
            places.push((address, array.len()));
            bytes.extend(array);
        }
        Ok(Self { before: bytes.clone(), bytes, places })
    }

    /// Writes what the model changed.
    pub fn write_back(&self) -> io::Result<()> {
        let mut at = 0_usize;
        for (address, length) in &self.places {
            let part = at..at.saturating_add(*length);
            at = part.end;
            let parts = self.before.get(part.clone()).zip(self.bytes.get(part));
            parts.map_or(Ok(()), |(before, after)| write_changes(*address, before, after))?;
        }
        Ok(())
    }
}

/// The array to which a struct points: its address and its length in bytes.
fn array(number: u32, bytes: &[u8]) -> Option<(usize, usize)> {
    let number_at = |at| usize::try_from(long(bytes, at)).ok();
    let pointer = || number_at(16);
    let ranges = (word(bytes, 8) as usize).saturating_mul(16);
    match number {
        // VFIO_IOMMU_DIRTY_PAGES with a bitmap. No VFIO_DEVICE_FEATURE has these flags.
        17 if bytes.len() >= 48 && word(bytes, 4) == 4 => Some((number_at(40)?, number_at(32)?)),
        // VFIO_DEVICE_BIND_IOMMUFD with a token
        18 if word(bytes, 4) & 1 != 0 => Some((pointer()?, 16)),
        // IOMMU_IOAS_ALLOW_IOVAS, IOMMU_IOAS_IOVA_RANGES
        30 | 32 if ranges > 0 => Some((pointer()?, ranges)),
        _ => None,
    }
}

/// Writes the bytes from the first to the last that differ.
fn write_changes(address: usize, before: &[u8], after: &[u8]) -> io::Result<()> {
    let differs = |(one, other): (&u8, &u8)| one != other;
    let first = before.iter().zip(after).position(differs);
    let last = before.iter().zip(after).rposition(differs);
    match first.zip(last).and_then(|(first, last)| Some((first, after.get(first..=last)?))) {
        Some((first, changed)) => memory::write(address.wrapping_add(first), changed),
        None => Ok(()),
    }
}

fn exactly(address: usize, length: usize) -> io::Result<Vec<u8>> {
    let bytes = memory::read(address, length)?;
    if bytes.len() < length { Err(Errno::EFAULT.into()) } else { Ok(bytes) }
}

/// A string of the C library, without its zero.
fn name(address: usize) -> io::Result<Vec<u8>> {
    let page = memory::read(address, 4096)?;
    let end = page.iter().position(|byte| *byte == 0).ok_or(Errno::EINVAL)?;
    Ok(page.into_iter().take(end).collect())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    word.map_or(0, |word| u32::from_ne_bytes(*word))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let long = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    long.map_or(0, |long| u64::from_ne_bytes(*long))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_count_from_the_first() {
        // VFIO_GET_API_VERSION, IOMMU_DESTROY, TCGETS, and one with a size
        assert_eq!(number_of(0x3b64), Some(0));
        assert_eq!(number_of(0x3b80), Some(28));
        assert_eq!(number_of(0x5401), None);
        assert_eq!(number_of(0xc004_3b64), None);
    }

    #[test]
    fn only_changes_are_written() {
        let mut place = [8_u32, 1, 2];
        let mut argument = Argument::read(3, place.as_mut_ptr() as usize).unwrap();
        assert_eq!(argument.bytes.len(), 8);
        place[0] = 9;
        argument.bytes[4] = 7;
        argument.write_back().unwrap();
        assert_eq!(place, [9, 7, 2]);
    }

    #[test]
    fn an_array_lies_behind_its_struct() {
        let mut ranges = [5_u64, 6];
        let pointer = ranges.as_mut_ptr() as u64;
        let mut place = [32 | 1 << 32, 1_u64, pointer, 0];
        let mut argument = Argument::read(32, place.as_mut_ptr() as usize).unwrap();
        assert_eq!(argument.bytes.len(), 48);
        assert_eq!(argument.bytes[32], 5);
        argument.bytes[40] = 9;
        argument.write_back().unwrap();
        assert_eq!(ranges, [5, 9]);
    }

    #[test]
    fn a_pointer_to_nothing_is_efault() {
        for number in [3, 4, 6, 7, 13, 33] {
            let error = Argument::read(number, 8).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EFAULT), "{number}");
        }
    }
}
