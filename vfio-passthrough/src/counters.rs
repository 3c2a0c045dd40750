//! Counts of what was asked of the kernel and of what the guest trapped into: to be looked at, never to
//! decide by.

use std::sync::atomic::{AtomicU64, Ordering};

/// One count. Relaxed: it orders nothing.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Defines a struct of counters with the list of their names and values.
macro_rules! counters {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: Counter,)*
        }

        impl $name {
            /// Every count with its name, in a fixed order.
            pub fn values(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
                [$((stringify!($field), self.$field.value()),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Calls of VFIO made by this crate. Those that open containers, groups and devices are not in it.
    VfioCalls {
        /// `VFIO_IOMMU_MAP_DMA`.
        map_dma,
        /// `VFIO_IOMMU_UNMAP_DMA`.
        unmap_dma,
        /// `VFIO_IOMMU_GET_INFO`.
        iommu_info,
        /// `VFIO_DEVICE_GET_REGION_INFO`.
        region_info,
        /// `VFIO_DEVICE_GET_IRQ_INFO`.
        irq_info,
        /// `VFIO_DEVICE_SET_IRQS`.
        set_irqs,
        /// `VFIO_DEVICE_RESET`.
        reset,
        /// `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`.
        hot_reset_info,
        /// `VFIO_DEVICE_PCI_HOT_RESET`.
        hot_reset,
        /// `pread` of a region.
        region_read,
        /// `pwrite` of a region.
        region_write,
        /// `mmap` of a region.
        region_mmap,
    }
}

counters! {
    /// What a guest's accesses to one function came to. All but the last two are traps into the VMM.
    FunctionTraps {
        /// Config space reads.
        config_reads,
        /// Config space writes.
        config_writes,
        /// Reads of a trapped area of a BAR.
        bar_reads,
        /// Writes to a trapped area of a BAR.
        bar_writes,
        /// Areas of a BAR that were mapped for the DMA of other devices.
        p2p_maps,
        /// Those that were unmapped again.
        p2p_unmaps,
    }
}

counters! {
    /// Calls of KVM made by the module `kvm`.
    KvmCalls {
        /// `KVM_SET_USER_MEMORY_REGION`.
        set_user_memory_region,
        /// `KVM_SET_GSI_ROUTING`.
        set_gsi_routing,
        /// `KVM_IRQFD`, to attach and to detach.
        irqfd,
        /// `KVM_CREATE_DEVICE`.
        create_device,
    }
}
