//! What the guest's CPUs say of themselves: KVM's supported leaves, with this VM's topology.
//!
//! The topology is flat: one package, one thread a core, APIC ids from 0.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;
use resources::CpuReach;

use crate::Error;

/// Leaf 1, ECX.
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the number of logical processors in EBX is valid.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX: leaf 0x8000_001e is valid.
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
/// Leaves 0xb and 0x1f, ECX[15:8]: what a level is.
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;
/// Address bits that every 64-bit CPU has.
const LEAST_ADDRESS_BITS: u8 = 36;
/// What page tables of four levels map (SDM 3A, 4.5).
const FOUR_LEVELS: u8 = 48;

/// What KVM can give a guest on this host, asked once.
pub fn supported(kvm: &Kvm) -> Result<CpuId, Error> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))
}

/// What the CPUs reach.
pub fn reach(supported: &CpuId) -> CpuReach {
    CpuReach {
        address_bits: address_bits(supported),
        hypertransport: is_amd(supported),
    }
}

/// The guest's physical address bits that this host's KVM can map (leaf 0x8000_0008, EAX[23:16]: the guest's;
/// EAX[7:0]: the CPU's).
///
/// KVM says the guest's since 6.10, where they are fewer; before that, a CPU of 52 bits may have page tables of
/// four levels, which map 48.
fn address_bits(supported: &CpuId) -> u8 {
    let leaf = supported
        .as_slice()
        .iter()
        .find(|entry| entry.function == 0x8000_0008);
    match leaf.map(|entry| entry.eax.to_le_bytes()) {
        Some([cpu, _, 0, _]) => cpu.min(FOUR_LEVELS),
        Some([cpu, _, guest, _]) => cpu.min(guest),
        None => LEAST_ADDRESS_BITS,
    }
}

/// AMD's, and those that are made after them (leaf 0; EBX, EDX, ECX).
fn is_amd(supported: &CpuId) -> bool {
    let leaf = supported.as_slice().iter().find(|entry| entry.function == 0);
    leaf.is_some_and(|entry| {
        let name = [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes);
        matches!(name.as_flattened(), b"AuthenticAMD" | b"HygonGenuine")
    })
}

/// The leaves of CPU `index` of `count`.
pub fn for_cpu(supported: &CpuId, index: u8, count: u8) -> CpuId {
    let mut cpuid = supported.clone();
    let topology = Topology {
        id: index.into(),
        count: count.into(),
    };
    cpuid
        .as_mut_slice()
        .iter_mut()
        .for_each(|entry| topology.apply(entry));
    cpuid
}

struct Topology {
    id: u32,
    count: u32,
}

impl Topology {
    /// Bits of an APIC id that number the CPUs.
    fn id_bits(&self) -> u32 {
        self.count.next_power_of_two().trailing_zeros()
    }

    fn last(&self) -> u32 {
        self.count.saturating_sub(1)
    }

    fn apply(&self, entry: &mut kvm_cpuid_entry2) {
        match entry.function {
            0x1 => self.features(entry),
            0x4 => self.caches(entry),
            0xb | 0x1f => self.levels(entry),
            0x8000_0001 => entry.ecx &= !TOPOLOGY_EXTENSIONS,
            // ECX[7:0]: cores less one; ECX[15:12]: bits of the APIC id that number them.
            0x8000_0008 => entry.ecx = self.last() | self.id_bits() << 12,
            // The host's own: with topology extensions off they say nothing.
            0x8000_001e | 0x8000_0026 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            _ => {}
        }
    }

    fn features(&self, entry: &mut kvm_cpuid_entry2) {
        entry.ecx |= X2APIC | TSC_DEADLINE | HYPERVISOR;
        entry.ebx = entry.ebx & 0xffff | self.count << 16 | self.id << 24;
        entry.edx = if self.count > 1 {
            entry.edx | HTT
        } else {
            entry.edx & !HTT
        };
    }

    /// EAX[31:26]: cores in the package less one; EAX[25:14]: CPUs that share the cache less one: the third
    /// level by all, the others by none. Six bits hold 64 cores, beyond which leaf 0xb is what counts.
    fn caches(&self, entry: &mut kvm_cpuid_entry2) {
        let level = entry.eax >> 5 & 0b111;
        let sharing = if level == 3 { self.last() } else { 0 };
        entry.eax = entry.eax & 0x3fff | sharing << 14 | self.last().min(63) << 26;
    }

    fn levels(&self, entry: &mut kvm_cpuid_entry2) {
        let (shift, cpus, level) = match entry.index {
            0 => (0, 1, LEVEL_THREAD),
            1 => (self.id_bits(), self.count, LEVEL_CORE),
            _ => (0, 0, 0),
        };
        (entry.eax, entry.ebx, entry.ecx, entry.edx) = (shift, cpus, level | entry.index, self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(cpus: u8, index: u8) -> impl Fn(u32, u32) -> kvm_cpuid_entry2 {
        let entry = |function, index, eax| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ..Default::default()
        };
        let supported = [
            entry(1, 0, 0),
            entry(4, 3, 3 << 5 | 0xfc00_0003),
            entry(0xb, 0, 9),
            entry(0xb, 1, 9),
            entry(0x8000_0008, 0, 0x3028),
        ];
        let cpuid = for_cpu(&CpuId::from_entries(&supported).unwrap(), index, cpus);
        move |function, index| {
            let entries = cpuid.as_slice().iter();
            *entries
                .clone()
                .find(|entry| entry.function == function && entry.index == index)
                .unwrap()
        }
    }

    #[test]
    fn one_cpu_is_no_package_of_many() {
        let leaf = leaves(1, 0);
        assert_eq!(leaf(1, 0).edx & HTT, 0);
        assert_eq!(leaf(0xb, 1).eax, 0);
        assert_eq!(leaf(0x8000_0008, 0).ecx, 0);
    }

    #[test]
    fn every_leaf_tells_the_same_topology() {
        let leaf = leaves(6, 5);
        assert_eq!(leaf(1, 0).ebx >> 16, 5 << 8 | 6);
        assert_eq!(
            leaf(1, 0).ecx & (X2APIC | TSC_DEADLINE | HYPERVISOR),
            X2APIC | TSC_DEADLINE | HYPERVISOR
        );
        assert_eq!(leaf(4, 3).eax, 5 << 26 | 5 << 14 | 3 << 5 | 3);
        let levels = [leaf(0xb, 0), leaf(0xb, 1)].map(|level| (level.eax, level.ebx, level.ecx, level.edx));
        assert_eq!(levels, [(0, 1, 0x100, 5), (3, 6, 0x201, 5)]);
        assert_eq!(leaf(0x8000_0008, 0).ecx, 3 << 12 | 5);
    }

    #[test]
    fn address_bits_come_from_the_leaf_or_are_the_least() {
        let bits = |eax| {
            let entry = kvm_cpuid_entry2 {
                function: 0x8000_0008,
                eax,
                ..Default::default()
            };
            address_bits(&CpuId::from_entries(&[entry]).unwrap())
        };
        let cases = [
            (0x3028, 40),
            (0x3934, 48),
            (0x0034_3934, 52),
            (0x0030_3934, 48),
            (0x0030_3028, 40),
        ];
        cases
            .into_iter()
            .for_each(|(eax, expected)| assert_eq!(bits(eax), expected, "{eax:#x}"));
        assert_eq!(address_bits(&CpuId::from_entries(&[]).unwrap()), 36);
    }

    #[test]
    fn makes_of_cpus_are_told_by_their_names() {
        let is_amd = |name: &[u8; 12]| {
            let [ebx, edx, ecx] = [0, 4, 8].map(|at| u32::from_le_bytes(*name[at..].first_chunk().unwrap()));
            let entry = kvm_cpuid_entry2 {
                ebx,
                ecx,
                edx,
                ..Default::default()
            };
            is_amd(&CpuId::from_entries(&[entry]).unwrap())
        };
        assert!(is_amd(b"AuthenticAMD") && is_amd(b"HygonGenuine"));
        assert!(!is_amd(b"GenuineIntel") && !is_amd(&[0; 12]));
        assert!(!super::is_amd(&CpuId::from_entries(&[]).unwrap()));
    }
}
