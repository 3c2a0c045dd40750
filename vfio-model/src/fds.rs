//! Fds that are no VFIO file, KVM's links to files, and the close of any fd.

use std::io;
use std::sync::Arc;

use crate::errno::errno;
use crate::events::{Counter, Eventfd};
use crate::files::{Fd, Kind};
use crate::state::{State, System};

impl System {
    /// Makes an eventfd whose counter the model holds.
    pub fn open_eventfd(&self) -> Fd {
        self.open_eventfd_of(Arc::new(Counter::default()))
    }

    /// Makes an fd for an eventfd of the program.
    pub fn open_eventfd_of(&self, eventfd: Arc<dyn Eventfd>) -> Fd {
        self.state().files.open_eventfd(eventfd)
    }

    /// Reads an eventfd: how often it was signalled since the last read. The count is 0 where a
    /// non-blocking read returns `EAGAIN`.
    ///
    /// # Errors
    ///
    /// `EINVAL`: the file is no eventfd (`eventfd_ctx_fdget`).
    pub fn signals(&self, eventfd: Fd) -> io::Result<u64> {
        Ok(self.state().files.eventfd(eventfd)?.0.take())
    }

    /// Adds 1 to an eventfd, as a write of the program does.
    ///
    /// # Errors
    ///
    /// `EINVAL`: the file is no eventfd.
    pub fn signal(&self, eventfd: Fd) -> io::Result<()> {
        self.state().files.eventfd(eventfd)?.signal();
        Ok(())
    }

    /// Makes a memfd of a size in bytes, which `IOMMU_IOAS_MAP_FILE` can map.
    pub fn open_memory(&self, size: u64) -> Fd {
        self.state().files.open(Kind::Memory(size))
    }

    /// Makes a virtual machine with a VFIO device (`KVM_DEV_TYPE_VFIO`). A close of the fd ends
    /// both.
    pub fn open_kvm(&self) -> Fd {
        self.state().files.open(Kind::Kvm)
    }

    /// Links KVM's VFIO device with a file of VFIO: `KVM_DEV_VFIO_FILE_ADD`, which was
    /// `KVM_DEV_VFIO_GROUP_ADD` (`kvm_vfio_file_add`).
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the file is neither a group nor, since 6.12, a device.
    /// - `EEXIST`: the file is linked already.
    /// - `EINVAL` or `EPERM` in 5.4: the group is not ready for use, or has no IOMMU.
    pub fn link(&self, kvm: Fd, file: Fd) -> io::Result<()> {
        let mut state = self.state();
        state.check_kvm(kvm)?;
        let kind = state.files.kind(file)?;
        let kernel = state.description.kernel;
        match kind {
            Kind::Group(group) if !kernel.links_files() => state.use_container(group)?,
            Kind::Group(_) | Kind::Revoked => {}
            Kind::Device(_) | Kind::Cdev(..) if kernel.links_devices() => {}
            _ => return Err(errno(libc::EINVAL)),
        }
        if !state.files.link(kvm, file) {
            return Err(errno(libc::EEXIST));
        }
        state.notify_kvm(kind, Some(kvm));
        Ok(())
    }

    /// Removes the link: `KVM_DEV_VFIO_FILE_DEL` (`kvm_vfio_file_del`).
    ///
    /// # Errors
    ///
    /// `ENOENT`: the file is not linked.
    pub fn unlink(&self, kvm: Fd, file: Fd) -> io::Result<()> {
        let mut state = self.state();
        state.check_kvm(kvm)?;
        let kind = state.files.kind(file)?;
        if !state.files.unlink(kvm, file) {
            return Err(errno(libc::ENOENT));
        }
        state.notify_kvm(kind, None);
        Ok(())
    }

    /// Closes an fd. Fds may be closed in any order.
    ///
    /// # Errors
    ///
    /// `EBADF`: the fd is not open.
    pub fn close(&self, fd: Fd) -> io::Result<()> {
        self.state().close(fd)
    }

    /// The open fds. A test that leaks nothing ends with none.
    pub fn open_fds(&self) -> Vec<Fd> {
        self.state().files.fds().collect()
    }
}

impl State {
    fn check_kvm(&self, fd: Fd) -> io::Result<()> {
        match self.files.kind(fd)? {
            Kind::Kvm => Ok(()),
            _ => self.unknown_ioctl(fd),
        }
    }

    fn close(&mut self, fd: Fd) -> io::Result<()> {
        let linked = self.files.linked_with(fd);
        let gone = self.files.close(fd)?;
        self.forget_irqfds(fd);
        linked.into_iter().for_each(|kind| self.notify_kvm(kind, None));
        for kind in gone {
            match kind {
                Kind::Container(id) => self.free_container(id),
                Kind::Group(group) => self.group_closed(group),
                Kind::Iommufd(id) => self.free_iommufd(id),
                Kind::Cdev(address, cdev) => self.cdev_closed(address, cdev),
                Kind::Device(address) => {
                    self.device_closed(address);
                    if let Ok(group) = self.entry(address).map(|entry| entry.group) {
                        self.group_closed(group);
                    }
                }
                Kind::Revoked | Kind::Eventfd | Kind::Kvm | Kind::Memory(_) => {}
            }
        }
        Ok(())
    }
}
