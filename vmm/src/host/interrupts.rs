//! The host kernel's interrupt counts of assigned devices. The kernel injects their interrupts
//! without an exit to this VMM, so the VMM cannot count them.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::counters::FunctionCounts;

/// A limit above the size of `/proc/interrupts` on every known host.
const MOST_BYTES: usize = 32 << 20;
const CHUNK: usize = 64 << 10;

/// `/proc/interrupts`, opened at the start: a running VMM may not open files. By default it is not
/// open, and nothing is counted.
#[derive(Default)]
pub(crate) struct Interrupts(Option<File>);

/// The interrupt count of one vector.
#[derive(Debug, PartialEq, Eq)]
struct Vector<'a> {
    address: &'a str,
    /// `msix[3]`, `msi[0]`, `intx`.
    name: &'a str,
    count: u64,
}

impl Interrupts {
    /// Opens `/proc/interrupts`; a failure means that nothing is counted.
    pub(crate) fn open() -> Self {
        Self(File::open("/proc/interrupts").ok())
    }

    /// Adds the counts of the devices at `addresses` to `counts`, for vectors that are bound
    /// now. The kernel discards a vector's count when VFIO unbinds the vector.
    pub(crate) fn count(&self, addresses: &[String], counts: &FunctionCounts) {
        let text = self.0.as_ref().map(read).unwrap_or_default();
        let vectors = text.lines().filter_map(vector);
        let ours = vectors.filter(|vector| addresses.iter().any(|own| own == vector.address));
        ours.for_each(|vector| counts.interrupts(vector.address, vector.name, vector.count));
    }
}

fn read(file: &File) -> String {
    let (mut bytes, mut chunk) = (Vec::new(), vec![0; CHUNK]);
    while bytes.len() < MOST_BYTES {
        match file.read_at(&mut chunk, bytes.len() as u64) {
            Ok(count @ 1..) => bytes.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            _ => break,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Parses ` 45:  10  0  IR-PCI-MSIX-0000:00:02.0  0-edge  vfio-msix[0](0000:00:02.0)`: a number, a
/// count per CPU, and at the end the owner's name, which vfio-pci formats as shown
/// (drivers/vfio/pci/vfio_pci_intrs.c).
fn vector(line: &str) -> Option<Vector<'_>> {
    let mut words = line.split_whitespace();
    words.next()?.strip_suffix(':')?;
    let (name, address) = words.next_back()?.strip_prefix("vfio-")?.split_once('(')?;
    let address = address.strip_suffix(')')?;
    let count = words.map_while(|word| word.parse().ok()).fold(0, u64::saturating_add);
    Some(Vector { address, name, count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_interrupts_of_vfio_among_others() {
        let text = "            CPU0       CPU1\n  \
            4:         10          0   IO-APIC   4-edge      ttyS0\n \
            45:         10         32  IR-PCI-MSIX-0000:00:02.0    0-edge      vfio-msix[0](0000:00:02.0)\n \
            46:          7          0  IR-PCI-MSI-0000:00:03.0    0-edge      vfio-msi[1](0000:00:03.0)\n \
            16:          1          1   IO-APIC  16-fasteoi   vfio-intx(0000:00:04.0)\n\
            NMI:          0          0   Non-maskable interrupts\n\
            ERR:          0\n";
        let found: Vec<_> = text.lines().filter_map(vector).collect();
        let expected = [
            ("0000:00:02.0", "msix[0]", 42),
            ("0000:00:03.0", "msi[1]", 7),
            ("0000:00:04.0", "intx", 2),
        ];
        let expected = expected.map(|(address, name, count)| Vector { address, name, count });
        assert_eq!(found, expected);
    }

    #[test]
    fn reads_the_file_again_each_time() {
        let interrupts = Interrupts::open();
        let counts = FunctionCounts::default();
        for _ in 0..2 {
            interrupts.count(&["0000:00:02.0".to_owned()], &counts);
            let text = interrupts.0.as_ref().map(read).unwrap_or_default();
            assert!(text.is_empty() || text.contains("CPU0"), "{text}");
        }
    }
}
