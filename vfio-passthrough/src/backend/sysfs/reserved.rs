//! What a group keeps of its I/O address space.

use std::fmt;
use std::fs::File;
use std::io::Read;

use super::tree::Sysfs;
use crate::address::ByteRange;

/// The kernel shows a page at most (`iommu_group_show_resv_regions`).
const MOST_BYTES: u64 = 64 << 10;

/// Why addresses are kept (linux/iommu.h, `enum iommu_resv_type`; names as in
/// `iommu_group_resv_type_string`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservedKind {
    /// Writes there are interrupts.
    Msi,
    /// Firmware goes on using memory there, by the device (RMRR): VFIO refuses the group.
    Direct,
    /// As that, until a driver takes the device: VFIO lets go of it.
    DirectRelaxable,
    /// Not translated, or of a kind that this library does not know.
    Reserved,
}

impl fmt::Display for ReservedKind {
    /// As sysfs has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Msi => "msi",
            Self::Direct => "direct",
            Self::DirectRelaxable => "direct-relaxable",
            Self::Reserved => "reserved",
        })
    }
}

/// Addresses that a group keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedRegion {
    /// Where.
    pub range: ByteRange,
    /// Why.
    pub kind: ReservedKind,
}

impl ReservedRegion {
    /// Whether guest memory may not be there (`vfio_iommu_resv_exclude`).
    pub fn is_taken(&self) -> bool {
        self.kind != ReservedKind::DirectRelaxable
    }
}

impl Sysfs {
    /// What a group keeps of its I/O address space, as far as sysfs tells.
    ///
    /// [`DmaSpace::iova_ranges`](crate::DmaSpace::iova_ranges) has it taken away already, but is
    /// there only when the group is attached, and since Linux 5.4.
    pub fn reserved_regions(&self, group: u32) -> Vec<ReservedRegion> {
        let folder = self.root.join("kernel/iommu_groups").join(group.to_string());
        let mut bytes = Vec::new();
        let opened = File::open(folder.join("reserved_regions"));
        let read = opened.and_then(|file| file.take(MOST_BYTES).read_to_end(&mut bytes));
        match read {
            Ok(_) => regions(&String::from_utf8_lossy(&bytes)),
            Err(_) => Vec::new(),
        }
    }
}

/// A line each, of first and last address and kind. Lines that are none are left out.
fn regions(text: &str) -> Vec<ReservedRegion> {
    let region = |line: &str| {
        let mut fields = line.split_whitespace();
        let (first, last) = (address(fields.next()?)?, address(fields.next()?)?);
        let kind = match fields.next()? {
            "msi" => ReservedKind::Msi,
            "direct" => ReservedKind::Direct,
            "direct-relaxable" => ReservedKind::DirectRelaxable,
            _ => ReservedKind::Reserved,
        };
        // The very last byte of 64 bits is out of reach of any mapping.
        let range = ByteRange::between(first, last.saturating_add(1));
        (!range.is_empty()).then_some(ReservedRegion { range, kind })
    };
    text.lines().filter_map(region).collect()
}

fn address(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    // from_str_radix would take a sign.
    let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    /// What is read of a tree whose group 7 has these regions.
    fn of(contents: impl AsRef<[u8]>) -> Vec<ReservedRegion> {
        let tree = tempfile::tempdir().unwrap();
        let folder = tree.path().join("kernel/iommu_groups/7");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("reserved_regions"), contents).unwrap();
        Sysfs::at(tree.path()).reserved_regions(7)
    }

    #[test]
    fn regions_are_read_as_the_kernel_writes_them() {
        let text = "\
0x0000000000000000 0x0000000000ffffff direct-relaxable
0x000000007b800000 0x000000007fffffff direct
0x00000000fee00000 0x00000000feefffff msi
0x000000fd00000000 0x000000ffffffffff reserved
0x0000010000000000 0x00000100000fffff of-a-later-kernel
";
        let found: Vec<_> = of(text)
            .iter()
            .map(|r| (r.range.start(), r.range.end(), r.kind.to_string(), r.is_taken()))
            .collect();
        let expected = [
            (0, 1 << 24, "direct-relaxable", false),
            (0x7b80_0000, 0x8000_0000, "direct", true),
            (0xfee0_0000, 0xfef0_0000, "msi", true),
            (0xfd_0000_0000, 1 << 40, "reserved", true),
            (1 << 40, (1 << 40) + (1 << 20), "reserved", true),
        ];
        assert_eq!(
            found,
            expected.map(|(start, end, kind, taken)| (start, end, kind.to_owned(), taken))
        );
    }

    #[test]
    fn what_is_no_region_is_left_out_and_the_rest_is_not() {
        let text = "\
0x2000 0x1000 direct
nonsense
0x1000 0x1fff
+0x1000 0x1fff msi
0x10000000000000000 0x10000000000000001 msi
0x 0x0 msi

  0x3000\t0x3fff\tmsi and more
0xf000000000000000 0xffffffffffffffff reserved";
        let ranges: Vec<_> = of(text).iter().map(|r| (r.range.start(), r.range.end())).collect();
        assert_eq!(ranges, [(0x3000, 0x4000), (0xf000_0000_0000_0000, u64::MAX)]);
    }

    #[test]
    fn a_file_that_is_none_or_has_no_end_is_read_as_far_as_it_goes() {
        let sysfs = Sysfs::at("/nonexistent");
        assert_eq!(sysfs.reserved_regions(7), []);
        let tree = tempfile::tempdir().unwrap();
        let file = tree.path().join("kernel/iommu_groups/7/reserved_regions");
        fs::create_dir_all(&file).unwrap();
        assert_eq!(Sysfs::at(tree.path()).reserved_regions(7), [], "a folder");
        fs::remove_dir(&file).unwrap();
        std::os::unix::fs::symlink(&file, &file).unwrap();
        assert_eq!(Sysfs::at(tree.path()).reserved_regions(7), [], "a link to itself");
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
        assert_eq!(Sysfs::at(tree.path()).reserved_regions(7), [], "no end");
    }

    proptest! {
        #[test]
        fn whatever_is_in_the_file_regions_are_not_empty(
            contents in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..400),
                "(0x[0-9a-f]{0,17} 0x[0-9a-f]{0,17} (msi|direct|x|)\n){0,8}".prop_map(String::into_bytes),
            ]
        ) {
            prop_assert!(regions(&String::from_utf8_lossy(&contents)).iter().all(|r| !r.range.is_empty()));
        }
    }
}
