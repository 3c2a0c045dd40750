//! The differences between kernels, one method each.

/// The kernel whose rules a [`System`](crate::System) follows.
///
/// Each method is a rule in which kernels differ. The project's conformance suite compares 6.1, 6.12
/// and 7.3 with running kernels; 5.4 follows the source of its first release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kernel {
    /// Linux 5.4: the VFIO core 0.3, before groups were claimed from the driver core.
    Linux5_4,
    /// Linux 6.1.
    Linux6_1,
    /// Linux 6.12.
    Linux6_12,
    /// Linux 7.3.
    Linux7_3,
}

impl Kernel {
    /// The version, with which `uname -r` begins.
    pub const fn version(self) -> &'static str {
        match self {
            Self::Linux5_4 => "5.4",
            Self::Linux6_1 => "6.1",
            Self::Linux6_12 => "6.12",
            Self::Linux7_3 => "7.3",
        }
    }

    fn since_6_1(self) -> bool {
        self >= Self::Linux6_1
    }

    fn since_6_12(self) -> bool {
        self >= Self::Linux6_12
    }

    fn since_7_3(self) -> bool {
        self >= Self::Linux7_3
    }

    /// `VFIO_GROUP_SET_CONTAINER` claims the group from the host's drivers, and refuses one that is
    /// not viable with EPERM. Before, a group that is not viable is refused when a device of it is
    /// opened, with EINVAL.
    pub fn claims_groups(self) -> bool {
        self.since_6_1()
    }

    /// `VFIO_GROUP_SET_CONTAINER` looks its fd up first. Before, a negative number is
    /// EINVAL rather than EBADF, and so is any fd while the group has a container.
    pub fn looks_fd_up_first(self) -> bool {
        self.since_6_1()
    }

    /// The errno of `VFIO_GROUP_SET_CONTAINER` for an open file that is no container.
    pub fn not_a_container(self) -> i32 {
        if self.since_6_12() { libc::EBADFD } else { libc::EINVAL }
    }

    /// `VFIO_GROUP_GET_DEVICE_FD` looks the name up before it checks the group, and accepts options
    /// after the name. Before, it checks the group first and accepts no options.
    pub fn looks_names_up_first(self) -> bool {
        self.since_6_1()
    }

    /// A virtual function whose physical function is on vfio-pci is opened with a VF token, and
    /// devices have `VFIO_DEVICE_FEATURE` (Linux 5.7).
    pub fn has_vf_tokens(self) -> bool {
        self.since_6_1()
    }

    /// KVM's link holds the group's file in any state of the group. Before, the link is a user of
    /// the group's container: it needs an IOMMU (EINVAL), fails for groups without one (EPERM), and
    /// makes `VFIO_GROUP_UNSET_CONTAINER` fail (EBUSY).
    pub fn links_files(self) -> bool {
        self.since_6_1()
    }

    /// KVM can also link a device's file.
    pub fn links_devices(self) -> bool {
        self.since_6_12()
    }

    /// An eventfd with an irqfd can have no other one, of any virtual machine. Before, it can have
    /// one of each.
    pub fn excludes_irqfds_of_others(self) -> bool {
        self.since_7_3()
    }

    /// The kernel can have `/dev/iommu` and character devices of devices (6.2 and 6.6, if they are
    /// configured).
    pub fn has_iommufd(self) -> bool {
        self.since_6_12()
    }

    /// iommufd has `IOMMU_IOAS_MAP_FILE` (6.13).
    pub fn maps_files(self) -> bool {
        self.since_7_3()
    }

    /// `VFIO_DEVICE_BIND_IOMMUFD` takes a VF token, and refuses a device that needs one and gets
    /// none. Before, it binds such a device without a token.
    pub fn binds_with_tokens(self) -> bool {
        self.since_7_3()
    }

    /// Attaches and detaches take a PASID.
    pub fn takes_pasids(self) -> bool {
        self.since_7_3()
    }

    /// An iommufd can be passed to another process (`IOMMU_IOAS_CHANGE_PROCESS`).
    pub fn changes_process(self) -> bool {
        self.since_7_3()
    }

    /// Every function has the error interrupt. Before, only PCI Express functions have it.
    pub fn reports_errors_of_all(self) -> bool {
        self.since_7_3()
    }

    /// type1 knows `VFIO_TYPE1_NESTING_IOMMU`.
    pub fn has_nesting(self) -> bool {
        !self.since_7_3()
    }

    /// Ranges that end beyond 2^64 are EOVERFLOW, before other checks of their sizes, and a range
    /// that ends at 2^64 overlaps others. Before, type1 returns EINVAL, and such a range overlaps
    /// none.
    pub fn checks_overflow(self) -> bool {
        self.since_7_3()
    }

    /// `VFIO_DEVICE_PCI_HOT_RESET` refuses a wrong number of fds before it looks at the bus.
    pub fn counts_fds_first(self) -> bool {
        self.since_6_12()
    }

    /// A device that vfio-pci leaves can be opened again while it is open.
    pub fn opens_what_leaves(self) -> bool {
        !self.since_6_12()
    }

    /// When vfio-pci leaves the last device of a group, the group leaves its container, and its
    /// open file returns ENODEV. Before, vfio-pci waits until the group has no container, and the
    /// file stays usable.
    pub fn revokes_groups(self) -> bool {
        self.since_6_1()
    }

    /// A driver that would make a group in use not viable cannot bind (EBUSY). Before, it binds,
    /// and the kernel stops with `BUG`.
    pub fn refuses_drivers(self) -> bool {
        self.since_6_1()
    }

    /// type1 has `VFIO_DMA_UNMAP_FLAG_ALL` and `VFIO_DMA_UNMAP_FLAG_VADDR`, and reports both as
    /// extensions.
    pub fn has_unmap_flags(self) -> bool {
        self.since_6_1()
    }

    /// type1 has `VFIO_IOMMU_DIRTY_PAGES` (5.8).
    pub fn tracks_dirty_pages(self) -> bool {
        self.since_6_1()
    }

    /// `VFIO_IOMMU_GET_INFO` reports the capabilities `MIGRATION` and `DMA_AVAIL`. Before, it
    /// reports the IOVA ranges only.
    pub fn has_dma_avail(self) -> bool {
        self.since_6_1()
    }

    /// Capabilities of an info reply begin at multiples of 8 bytes.
    pub fn aligns_capabilities(self) -> bool {
        self.since_6_12()
    }

    /// The size of `struct vfio_device_info`.
    pub fn device_info_size(self) -> usize {
        match self {
            Self::Linux5_4 => 16,
            Self::Linux6_1 => 20,
            Self::Linux6_12 | Self::Linux7_3 => 24,
        }
    }

    /// The size of `struct vfio_iommu_type1_info` without padding at its end.
    pub fn iommu_info_size(self) -> usize {
        match self {
            Self::Linux5_4 | Self::Linux6_1 => 20,
            Self::Linux6_12 | Self::Linux7_3 => 24,
        }
    }

    /// With an `argsz` between the sizes of two versions of a struct, the new fields are written up
    /// to `argsz`, to the byte. Before, none of them is written.
    pub fn writes_parts_of_fields(self) -> bool {
        self.since_6_12()
    }

    /// Vectors can be added to MSI-X while it is enabled: no `NORESIZE`.
    pub fn grows_msix(self) -> bool {
        self.since_6_12()
    }
}
