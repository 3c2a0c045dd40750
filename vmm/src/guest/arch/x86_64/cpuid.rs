//! CPUID of the guest's CPUs: KVM's supported leaves, with this VM's topology.
//!
//! The topology is flat: one package, one thread per core, APIC ids from 0.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::Kvm;
use resources::CpuReach;

use crate::error::Error;

/// What KVM supports of a CPU.
pub(crate) type Supported = CpuId;

/// Leaf 1, ECX.
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the number of logical processors in EBX is valid.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX: leaf 0x8000_001e is valid.
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
/// The same register on AMD: leaf 1 counts cores.
const CMP_LEGACY: u32 = 1 << 1;
/// Extended topology, and its second version.
const LEVELS: [u32; 2] = [0xb, 0x1f];
/// ECX[15:8] of both: the type of a level.
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;
/// Address bits of every 64-bit CPU.
const LEAST_ADDRESS_BITS: u8 = 36;
/// Address bits of four-level page tables (SDM 3A, 4.5).
const FOUR_LEVELS: u8 = 48;

/// The CPUID that KVM supports on this host.
pub(crate) fn supported(kvm: &Kvm) -> Result<CpuId, Error> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))
}

/// The physical addresses that the CPUs can access.
pub(crate) fn reach(supported: &CpuId) -> CpuReach {
    CpuReach { address_bits: address_bits(supported), hypertransport: is_amd(supported) }
}

/// The guest physical address bits that this host's KVM can map (leaf 0x8000_0008, EAX[23:16]: the
/// guest's; EAX[7:0]: the CPU's).
///
/// Since 6.10 KVM reports the guest's bits if they are fewer. On an older kernel a CPU of 52 bits
/// may have four-level page tables, which map 48 bits.
fn address_bits(supported: &CpuId) -> u8 {
    let leaf = supported.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
    match leaf.map(|entry| entry.eax.to_le_bytes()) {
        Some([cpu, _, 0, _]) => cpu.min(FOUR_LEVELS),
        Some([cpu, _, guest, _]) => cpu.min(guest),
        None => LEAST_ADDRESS_BITS,
    }
}

/// Whether the CPU is AMD's or a derivative (leaf 0; EBX, EDX, ECX).
fn is_amd(supported: &CpuId) -> bool {
    let leaf = supported.as_slice().iter().find(|entry| entry.function == 0);
    leaf.is_some_and(|entry| {
        let name = [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes);
        matches!(name.as_flattened(), b"AuthenticAMD" | b"HygonGenuine")
    })
}

/// The leaves of CPU `index` of `count`.
pub(crate) fn for_cpu(supported: &CpuId, index: u8, count: u8) -> Result<CpuId, Error> {
    let topology = Topology { id: index.into(), count: count.into(), is_amd: is_amd(supported) };
    let last_leaf = supported.as_slice().iter().find(|entry| entry.function == 0);
    let last_leaf = last_leaf.map_or(0, |entry| entry.eax);
    // KVM reports no levels (newer kernels: an empty first one), or the host's.
    let own = supported.as_slice().iter().filter(|entry| !LEVELS.contains(&entry.function));
    let mut entries: Vec<_> = own.copied().collect();
    entries.iter_mut().for_each(|entry| topology.apply(entry));
    let levels = LEVELS.iter().filter(|leaf| **leaf <= last_leaf);
    entries.extend(levels.flat_map(|leaf| topology.levels(*leaf)));
    CpuId::from_entries(&entries).map_err(|e| Error::Vcpu(format!("no room for CPUID: {e:?}")))
}

struct Topology {
    id: u32,
    count: u32,
    is_amd: bool,
}

impl Topology {
    /// The number of APIC id bits that number the CPUs.
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
            0x8000_0001 => self.extended_features(entry),
            // ECX[7:0]: cores minus one; ECX[15:12]: bits of the APIC id that number them.
            0x8000_0008 => entry.ecx = self.last() | self.id_bits() << 12,
            // The host's topology; with topology extensions disabled these leaves are reserved.
            0x8000_001e | 0x8000_0026 => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0)
            }
            _ => {}
        }
    }

    fn features(&self, entry: &mut kvm_cpuid_entry2) {
        entry.ecx |= X2APIC | TSC_DEADLINE | HYPERVISOR;
        entry.ebx = entry.ebx & 0xffff | self.count << 16 | self.id << 24;
        entry.edx = if self.count > 1 { entry.edx | HTT } else { entry.edx & !HTT };
    }

    /// EAX[31:26]: cores in the package minus one. EAX[25:14]: CPUs that share the cache minus
    /// one; all CPUs share the third level, and no CPUs share the others. Six bits count at
    /// most 64 cores; for more, software uses leaf 0xb.
    fn caches(&self, entry: &mut kvm_cpuid_entry2) {
        let level = entry.eax >> 5 & 0b111;
        let sharing = if level == 3 { self.last() } else { 0 };
        entry.eax = entry.eax & 0x3fff | sharing << 14 | self.last().min(63) << 26;
    }

    /// Without CMP_LEGACY the logical processors of leaf 1 would be threads of one core (APM 3,
    /// E.4.2).
    fn extended_features(&self, entry: &mut kvm_cpuid_entry2) {
        entry.ecx &= !(TOPOLOGY_EXTENSIONS | CMP_LEGACY);
        if self.is_amd && self.count > 1 {
            entry.ecx |= CMP_LEGACY;
        }
    }

    /// The thread level, with one thread per core, and the core level (SDM 2A, CPUID, leaf
    /// 0xb). KVM answers for higher levels.
    fn levels(&self, leaf: u32) -> [kvm_cpuid_entry2; 2] {
        let level = |index, shift, cpus, kind| kvm_cpuid_entry2 {
            function: leaf,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: cpus,
            ecx: kind | index,
            edx: self.id,
            ..Default::default()
        };
        [level(0, 0, 1, LEVEL_THREAD), level(1, self.id_bits(), self.count, LEVEL_CORE)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(cpus: u8, index: u8) -> impl Fn(u32, u32) -> kvm_cpuid_entry2 {
        let entry =
            |function, index, eax| kvm_cpuid_entry2 { function, index, eax, ..Default::default() };
        let supported = [
            entry(0, 0, 0xd),
            entry(1, 0, 0),
            entry(4, 3, 3 << 5 | 0xfc00_0003),
            entry(0xb, 0, 9),
            entry(0x8000_0008, 0, 0x3028),
        ];
        let cpuid = for_cpu(&CpuId::from_entries(&supported).unwrap(), index, cpus).unwrap();
        move |function, index| {
            let entries = cpuid.as_slice().iter();
            *entries
                .clone()
                .find(|entry| entry.function == function && entry.index == index)
                .unwrap()
        }
    }

    #[test]
    fn one_cpu_has_no_multi_core_bits() {
        let leaf = leaves(1, 0);
        assert_eq!(leaf(1, 0).edx & HTT, 0);
        assert_eq!(leaf(0xb, 1).eax, 0);
        assert_eq!(leaf(0x8000_0008, 0).ecx, 0);
    }

    #[test]
    fn every_leaf_reports_the_same_topology() {
        let leaf = leaves(6, 5);
        assert_eq!(leaf(1, 0).ebx >> 16, 5 << 8 | 6);
        assert_eq!(
            leaf(1, 0).ecx & (X2APIC | TSC_DEADLINE | HYPERVISOR),
            X2APIC | TSC_DEADLINE | HYPERVISOR
        );
        assert_eq!(leaf(4, 3).eax, 5 << 26 | 5 << 14 | 3 << 5 | 3);
        let levels =
            [leaf(0xb, 0), leaf(0xb, 1)].map(|level| (level.eax, level.ebx, level.ecx, level.edx));
        assert_eq!(levels, [(0, 1, 0x100, 5), (3, 6, 0x201, 5)]);
        assert_eq!(leaf(0x8000_0008, 0).ecx, 3 << 12 | 5);
    }

    #[test]
    fn adds_levels_only_up_to_the_last_leaf() {
        let entry = |eax| kvm_cpuid_entry2 { eax, ..Default::default() };
        for (last_leaf, expected) in [(0xa, 0), (0xb, 2), (0x1e, 2), (0x1f, 4), (0x20, 4)] {
            let cpuid = for_cpu(&CpuId::from_entries(&[entry(last_leaf)]).unwrap(), 3, 4).unwrap();
            let levels = cpuid.as_slice().iter().filter(|entry| LEVELS.contains(&entry.function));
            assert_eq!(levels.count(), expected, "{last_leaf:#x}");
        }
    }

    #[test]
    fn several_amd_cpus_count_as_cores() {
        let [name, features] = [0, 0x8000_0001].map(|function| kvm_cpuid_entry2 {
            function,
            ebx: u32::from_le_bytes(*b"Auth"),
            edx: u32::from_le_bytes(*b"enti"),
            ecx: u32::from_le_bytes(*b"cAMD"),
            ..Default::default()
        });
        let bit = |supported: &[kvm_cpuid_entry2], count| {
            let cpuid = for_cpu(&CpuId::from_entries(supported).unwrap(), 0, count).unwrap();
            cpuid.as_slice().last().unwrap().ecx & CMP_LEGACY != 0
        };
        let amd = [kvm_cpuid_entry2 { eax: 1, ..name }, features];
        assert!(bit(&amd, 2) && !bit(&amd, 1) && !bit(&[features], 2));
    }

    #[test]
    fn reads_address_bits_from_the_leaf_or_uses_the_minimum() {
        let bits = |eax| {
            let entry = kvm_cpuid_entry2 { function: 0x8000_0008, eax, ..Default::default() };
            address_bits(&CpuId::from_entries(&[entry]).unwrap())
        };
        let cases =
            [(0x3028, 40), (0x3934, 48), (0x0034_3934, 52), (0x0030_3934, 48), (0x0030_3028, 40)];
        cases.into_iter().for_each(|(eax, expected)| assert_eq!(bits(eax), expected, "{eax:#x}"));
        assert_eq!(address_bits(&CpuId::from_entries(&[]).unwrap()), 36);
    }

    #[test]
    fn recognizes_amd_by_its_vendor_name() {
        let is_amd = |name: &[u8; 12]| {
            let [ebx, edx, ecx] =
                [0, 4, 8].map(|at| u32::from_le_bytes(*name[at..].first_chunk().unwrap()));
            let entry = kvm_cpuid_entry2 { ebx, ecx, edx, ..Default::default() };
            is_amd(&CpuId::from_entries(&[entry]).unwrap())
        };
        assert!(is_amd(b"AuthenticAMD") && is_amd(b"HygonGenuine"));
        assert!(!is_amd(b"GenuineIntel") && !is_amd(&[0; 12]));
        assert!(!super::is_amd(&CpuId::from_entries(&[]).unwrap()));
    }
}
