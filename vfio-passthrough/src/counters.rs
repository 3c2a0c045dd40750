//! Counters of calls to the kernel and of guest accesses that trapped. They are statistics: no code
//! of this crate depends on a value.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter. Its accesses are relaxed: they order no other memory access.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of increments so far.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Defines a struct of counters, with a method that lists their names and values.
macro_rules! counters {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: Counter,)*
        }

        impl $name {
            /// The name and the value of each counter, in the order of the fields.
            pub fn values(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
                [$((stringify!($field), self.$field.value()),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Calls to VFIO by this crate. Calls that open containers, groups and devices are not counted.
    VfioCalls {
        /// `VFIO_IOMMU_MAP_DMA`.
        map_dma,
        /// `VFIO_IOMMU_UNMAP_DMA`.
        unmap_dma,
        /// `VFIO_IOMMU_GET_INFO`.
        iommu_info,
        /// `IOMMU_IOAS_MAP`, of iommufd.
        ioas_map,
        /// `IOMMU_IOAS_MAP_FILE`, of iommufd.
        ioas_map_file,
        /// `IOMMU_IOAS_UNMAP`, of iommufd.
        ioas_unmap,
        /// `IOMMU_IOAS_IOVA_RANGES`, of iommufd.
        ioas_iova_ranges,
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
        /// `VFIO_DEVICE_FEATURE_DMA_BUF`.
        dma_buf,
        /// `mmap` of a region.
        region_mmap,
    }
}

counters! {
    /// Guest accesses to one function that trapped into the VMM, and peer-to-peer mappings of its
    /// BARs.
    FunctionTraps {
        /// Reads of config space.
        config_reads,
        /// Writes of config space.
        config_writes,
        /// Reads of a trapped area of a BAR.
        bar_reads,
        /// Writes to a trapped area of a BAR.
        bar_writes,
        /// BAR areas that were mapped for DMA of the guest's other devices.
        p2p_maps,
        /// BAR areas that were unmapped from that DMA.
        p2p_unmaps,
    }
}

counters! {
    /// Calls to KVM by the module `kvm`.
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
