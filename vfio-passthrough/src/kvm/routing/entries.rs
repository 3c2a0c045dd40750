//! KVM's routing table in KVM's format.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KVM_MSI_VALID_DEVID, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi, kvm_irq_routing_msi__bindgen_ty_1,
};

use crate::host::MsiMessage;
use crate::kvm::arch;

/// The number of entries that a routing table can have (`KVM_MAX_IRQ_ROUTES` in linux/kvm_host.h).
pub(super) const MAX_ENTRIES: usize = 4096;

/// What a GSI sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Msi {
    pub message: MsiMessage,
    /// The ID by which the interrupt controller knows the sender.
    pub device_id: Option<u32>,
}

/// All routes of a VM.
#[derive(Clone)]
pub(super) struct Routes {
    /// The VMM's own routes, by GSI. A pin of both x86 controllers has two routes.
    pub own: BTreeMap<u32, Vec<kvm_irq_routing_entry>>,
    /// The routes of functions, by GSI.
    pub msis: BTreeMap<u32, Msi>,
}

impl Routes {
    /// The routes of a new VM whose interrupt controllers are in the kernel. The GSIs in `msis` are
    /// no pins.
    pub fn new(msis: &Range<u32>) -> Self {
        let mut routes = Self { own: BTreeMap::new(), msis: BTreeMap::new() };
        routes.set_own(&arch::pins(msis).collect::<Vec<_>>());
        routes
    }

    /// Replaces the VMM's own routes of the GSIs in `entries`.
    pub fn set_own(&mut self, entries: &[kvm_irq_routing_entry]) {
        entries.iter().for_each(|entry| drop(self.own.remove(&entry.gsi)));
        entries.iter().for_each(|entry| self.own.entry(entry.gsi).or_default().push(*entry));
    }

    /// All routes in one value.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if there are more than [`MAX_ENTRIES`].
    pub fn table(&self) -> io::Result<KvmIrqRouting> {
        let msis = self.msis.iter().map(|(gsi, msi)| route(*gsi, *msi));
        let entries: Vec<_> = self.own.values().flatten().copied().chain(msis).collect();
        let too_many = |_| io::Error::from_raw_os_error(libc::ENOSPC);
        KvmIrqRouting::from_entries(&entries).map_err(too_many)
    }
}

/// The route of a GSI to a message. KVM takes a device ID only with its flag
/// (Documentation/virt/kvm/api.rst, 4.52).
pub(super) fn route(gsi: u32, msi: Msi) -> kvm_irq_routing_entry {
    let (address_lo, address_hi) = halves(msi.message.address);
    let devid = msi.device_id.unwrap_or_default();
    let flags = msi.device_id.map_or(0, |_| KVM_MSI_VALID_DEVID);
    let sender = kvm_irq_routing_msi__bindgen_ty_1 { devid };
    let data = msi.message.data;
    let msi = kvm_irq_routing_msi { address_lo, address_hi, data, __bindgen_anon_1: sender };
    let u = kvm_irq_routing_entry__bindgen_ty_1 { msi };
    kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, flags, u, ..Default::default() }
}

fn halves(address: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(route: &kvm_irq_routing_entry) -> (u32, u32, u32, u32) {
        assert_eq!(route.type_, KVM_IRQ_ROUTING_MSI);
        // SAFETY: all variants are plain numbers, and the type says that this one is filled in.
        let msi = unsafe { route.u.msi };
        // SAFETY: both variants are one number.
        (msi.address_lo, msi.address_hi, msi.data, unsafe { msi.__bindgen_anon_1.devid })
    }

    #[test]
    fn splits_the_address_of_a_message_into_halves() {
        let message = MsiMessage { address: 0x1234_5678_fee0_1000, data: 0x4041 };
        let route = route(24, Msi { message, device_id: None });
        assert_eq!((route.gsi, route.flags), (24, 0));
        assert_eq!(sent(&route), (0xfee0_1000, 0x1234_5678, 0x4041, 0));
    }

    #[test]
    fn a_route_names_its_sender_if_it_has_a_device_id() {
        let message = MsiMessage { address: 0x0808_0040, data: 3 };
        let route = route(64, Msi { message, device_id: Some(0x18) });
        assert_eq!(route.flags, KVM_MSI_VALID_DEVID);
        assert_eq!(sent(&route), (0x0808_0040, 0, 3, 0x18));
    }

    #[test]
    fn keeps_only_the_last_routes_of_a_gsi() {
        let mut routes = Routes { own: BTreeMap::new(), msis: BTreeMap::new() };
        let message = |data| {
            let message = MsiMessage { address: 0xfee0_0000, data };
            Msi { message, device_id: None }
        };
        routes.set_own(&[arch::pin(3, 0, 3), arch::pin(3, 2, 3)]);
        routes.set_own(&[route(5, message(1))]);
        assert_eq!((routes.own[&3].len(), routes.own[&5].len()), (2, 1));
        routes.set_own(&[route(3, message(2))]);
        assert_eq!(routes.own[&3].len(), 1);
        assert_eq!(routes.table().unwrap().as_slice().len(), 2);
    }
}
