//! The start of an expansion ROM (PCI 3.0, 6.3.1).

/// The first bytes of an image (PCI 3.0, 6.3.1.1).
pub const SIGNATURE: [u8; 2] = [0x55, 0xaa];

/// The offset of the pointer to the PCI Data Structure, which begins with "PCIR"; the vendor ID
/// follows (PCI 3.0, 6.3.1.2).
const POINTER: usize = 0x18;
const DATA_SIGNATURE: &[u8] = b"PCIR";

/// The vendor of the device for which the first image is, if the image names it.
pub fn vendor(rom: &[u8]) -> Option<u16> {
    let word = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u16::from_le_bytes(*bytes));
    let image = Some(rom).filter(|rom| rom.starts_with(&SIGNATURE))?;
    let pointer = word(image.get(POINTER..)?)?;
    word(image.get(pointer.into()..)?.strip_prefix(DATA_SIGNATURE)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image of vendor 0x1002 whose PCI Data Structure is at `at`.
    fn image(at: u8) -> Vec<u8> {
        let mut rom = vec![0; 0x40];
        rom[..2].copy_from_slice(&SIGNATURE);
        rom[POINTER] = at;
        if let Some(data) = rom.get_mut(at.into()..).filter(|data| data.len() >= 6) {
            data[..6].copy_from_slice(b"PCIR\x02\x10");
        }
        rom
    }

    #[test]
    fn finds_the_vendor_of_an_image() {
        assert_eq!(vendor(&image(0x1c)), Some(0x1002));
        assert_eq!(vendor(&image(0x3a)), Some(0x1002), "at the end");
    }

    #[test]
    fn a_rom_without_a_whole_header_names_no_vendor() {
        let whole = image(0x1c);
        assert!((0..0x22).all(|length| vendor(&whole[..length]).is_none()));
        assert_eq!(vendor(&image(0x3b)), None, "past the end");
        let without_signature = [&[0, 0], &whole[2..]].concat();
        assert_eq!(vendor(&without_signature), None);
        let mut other = whole;
        other[0x1c] = b'p';
        assert_eq!(vendor(&other), None, "no PCI Data Structure");
    }
}
