//! ELF files: what is loaded where, and the entry point of the PVH protocol.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// The first bytes of an ELF file.
pub const MAGIC: [u8; 4] = *b"\x7fELF";
/// What follows them in a file of 64 bits, little-endian (`ELFCLASS64`, `ELFDATA2LSB`).
const CLASS: [u8; 2] = [2, 1];
const HEADER_SIZE: usize = 64;
const SEGMENT_SIZE: usize = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Xen's note with the 32-bit entry point (xen/include/public/elfnote.h).
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// Far more than the notes of a kernel, a few hundred bytes, and no more than is read.
const MAX_NOTES: u64 = 64 << 10;

/// A program header (ELF, "Program Header"), less what is of no use here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    kind: u32,
    /// Where it is in the file.
    pub offset: u64,
    /// Where it goes in guest memory (`p_paddr`).
    pub gpa: u64,
    /// How much of it is in the file.
    pub file_size: u64,
    /// How much of it is in memory; what is not in the file is zeros.
    pub memory_size: u64,
}

impl Segment {
    /// Whether it is loaded.
    pub fn is_load(&self) -> bool {
        self.kind == PT_LOAD
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            kind: u32::from_le_bytes(field(bytes, 0)?),
            offset: u64::from_le_bytes(field(bytes, 8)?),
            gpa: u64::from_le_bytes(field(bytes, 24)?),
            file_size: u64::from_le_bytes(field(bytes, 32)?),
            memory_size: u64::from_le_bytes(field(bytes, 40)?),
        })
    }
}

/// The segments of an ELF file.
pub fn segments(file: &File) -> Result<Vec<Segment>, String> {
    let header = read(file, 0, HEADER_SIZE)?;
    let table = table(&header).ok_or("it is no ELF file of 64 bits, little-endian")?;
    let (offset, count) = table;
    let bytes = read(file, offset, count.saturating_mul(SEGMENT_SIZE))?;
    Ok(bytes
        .chunks_exact(SEGMENT_SIZE)
        .filter_map(Segment::from_bytes)
        .collect())
}

/// Where the program headers are, and how many there are.
fn table(header: &[u8]) -> Option<(u64, usize)> {
    let is_known = field(header, 4)? == CLASS && u16_at(header, 0x36)? == SEGMENT_SIZE as u16;
    let offset = u64::from_le_bytes(field(header, 0x20)?);
    is_known.then_some((offset, u16_at(header, 0x38)?.into()))
}

/// The entry point of the PVH protocol, if one of the file's notes has it.
pub fn pvh_entry(file: &File, segments: &[Segment]) -> Result<Option<u32>, String> {
    for note in segments.iter().filter(|segment| segment.kind == PT_NOTE) {
        let notes = read(file, note.offset, note.file_size.min(MAX_NOTES) as usize)?;
        if let Some(entry) = entry_in(&notes) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// The entry point in notes: each is three numbers, a name and a description, padded to 4 bytes (ELF, "Note
/// Section").
fn entry_in(mut notes: &[u8]) -> Option<u32> {
    loop {
        let [name_size, size, kind] = [0, 4, 8].map(|at| field(notes, at).map(u32::from_le_bytes));
        let name = notes.get(12..)?.get(..name_size? as usize)?;
        let description = notes.get(12..)?.get(padded(name_size?)?..)?;
        if kind? == XEN_ELFNOTE_PHYS32_ENTRY && name == b"Xen\0" {
            return field(description, 0).map(u32::from_le_bytes);
        }
        notes = description.get(padded(size?)?..)?;
    }
}

fn padded(size: u32) -> Option<usize> {
    (size as usize).checked_next_multiple_of(4)
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    field(bytes, offset).map(u16::from_le_bytes)
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

fn read(file: &File, offset: u64, size: usize) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; size];
    match file.read_exact_at(&mut bytes, offset) {
        Ok(()) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(format!("it ends within {size} bytes at {offset:#x}"))
        }
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn note(name: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
        let sizes = [name.len() as u32, description.len() as u32, kind];
        let mut note: Vec<u8> = sizes.iter().flat_map(|size| size.to_le_bytes()).collect();
        for part in [name, description] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    #[test]
    fn the_entry_is_found_behind_other_notes() {
        let notes = [
            note(b"GNU\0", 18, &[1; 20]),
            note(b"Xen\0", 6, b"linux\0"),
            note(b"Xen\0", 18, &0x100_0370_u64.to_le_bytes()),
        ];
        assert_eq!(entry_in(&notes.concat()), Some(0x100_0370));
        assert_eq!(entry_in(&notes[..2].concat()), None);
    }

    #[test]
    fn an_entry_of_less_than_32_bits_is_none() {
        assert_eq!(entry_in(&note(b"Xen\0", 18, &[])), None);
    }

    #[test]
    fn sizes_that_overflow_end_the_notes() {
        assert_eq!(entry_in(&[0xff; 64]), None);
    }

    #[test]
    fn segments_are_read() {
        let mut file = tempfile::tempfile().unwrap();
        let mut header = [0; HEADER_SIZE];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (header[0x20], header[0x36], header[0x38]) = (64, 56, 1);
        let words = [
            1_u64,
            0x1000,
            0xffff_ffff_8100_0000,
            0x100_0000,
            0x234,
            0x2000,
            0x1000,
        ];
        file.write_all(&header).unwrap();
        for word in words {
            file.write_all(&word.to_le_bytes()).unwrap();
        }
        let expected = Segment {
            kind: PT_LOAD,
            offset: 0x1000,
            gpa: 0x100_0000,
            file_size: 0x234,
            memory_size: 0x2000,
        };
        assert_eq!(segments(&file), Ok(vec![expected]));
        file.set_len(100).unwrap();
        assert_eq!(segments(&file), Err("it ends within 56 bytes at 0x40".into()));
    }

    proptest! {
        #[test]
        fn any_notes_end(notes in prop::collection::vec(any::<u8>(), 0..200)) {
            entry_in(&notes);
        }
    }
}
