//! Where kernels differ: one method a difference, and nowhere else.

/// The kernel whose rules a [`System`](super::System) follows.
///
/// Where they agree nothing is said; each method is a rule in which they do not. 6.1 and 6.12 are
/// held against running kernels by the project's conformance suite; 5.4 is by the book.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kernel {
    /// Linux 5.4: the VFIO core 0.3, before groups were claimed from the driver core.
    Linux5_4,
    /// Linux 6.1.
    Linux6_1,
    /// Linux 6.12.
    Linux6_12,
}

impl Kernel {
    /// The version as `uname -r` begins.
    pub const fn version(self) -> &'static str {
        match self {
            Self::Linux5_4 => "5.4",
            Self::Linux6_1 => "6.1",
            Self::Linux6_12 => "6.12",
        }
    }

    fn since_6_1(self) -> bool {
        self >= Self::Linux6_1
    }

    fn since_6_12(self) -> bool {
        self >= Self::Linux6_12
    }

    /// `VFIO_GROUP_SET_CONTAINER` claims the group from the host's drivers, and refuses one that is
    /// not viable with EPERM. Before, a group that is not viable is refused when a device of it is
    /// opened, with EINVAL.
    pub fn claims_groups(self) -> bool {
        self.since_6_1()
    }

    /// `VFIO_GROUP_SET_CONTAINER` looks its fd up before all else. Before, a negative number is
    /// EINVAL rather than EBADF, and so is any fd while the group has a container.
    pub fn looks_fd_up_first(self) -> bool {
        self.since_6_1()
    }

    /// `VFIO_GROUP_SET_CONTAINER` with an open file that is no container.
    pub fn not_a_container(self) -> i32 {
        if self.since_6_12() { libc::EBADFD } else { libc::EINVAL }
    }

    /// `VFIO_GROUP_GET_DEVICE_FD` looks the name up before it asks whether the group is ready, and
    /// takes options after the name. Before, the group comes first, and a name is a name.
    pub fn looks_names_up_first(self) -> bool {
        self.since_6_1()
    }

    /// KVM's link holds the group's file, whatever state the group is in. Before, it is a user of
    /// the group's container: refused until an IOMMU is set, refused for groups without an IOMMU
    /// (EPERM), and in the way of `VFIO_GROUP_UNSET_CONTAINER` (EBUSY).
    pub fn links_files(self) -> bool {
        self.since_6_1()
    }

    /// KVM's link takes a device's file, too.
    pub fn links_devices(self) -> bool {
        self.since_6_12()
    }

    /// A device that is being taken away can still be opened by its name while somebody has it
    /// open.
    pub fn opens_what_leaves(self) -> bool {
        !self.since_6_12()
    }

    /// With the last device that vfio-pci has of a group the group leaves its container, and its
    /// open file is of no use any more (ENODEV). Before, that device's driver waits until the group
    /// has no container, and the file stays of use.
    pub fn revokes_groups(self) -> bool {
        self.since_6_1()
    }

    /// A driver that would make a group in use not viable cannot bind (EBUSY). Before, it binds,
    /// and the kernel stops itself.
    pub fn refuses_drivers(self) -> bool {
        self.since_6_1()
    }

    /// type1 has `VFIO_DMA_UNMAP_FLAG_ALL` and `VFIO_DMA_UNMAP_FLAG_VADDR`, and reports both as extensions.
    pub fn has_unmap_flags(self) -> bool {
        self.since_6_1()
    }

    /// `VFIO_IOMMU_GET_INFO` has the capabilities `MIGRATION` and `DMA_AVAIL`. Before, it has the
    /// IOVA ranges.
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
            Self::Linux6_12 => 24,
        }
    }

    /// The size of `struct vfio_iommu_type1_info`, without the padding that the last fields of
    /// older ones are followed by.
    pub fn iommu_info_size(self) -> usize {
        match self {
            Self::Linux5_4 | Self::Linux6_1 => 20,
            Self::Linux6_12 => 24,
        }
    }

    /// An `argsz` between the sizes of an old and a new version of a struct has the new fields
    /// written as far as they fit, in bytes. Before, it is taken for that of the old version.
    pub fn writes_parts_of_fields(self) -> bool {
        self.since_6_12()
    }

    /// Vectors can be added to MSI-X that is on: no `NORESIZE`.
    pub fn grows_msix(self) -> bool {
        self.since_6_12()
    }
}
