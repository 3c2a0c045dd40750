//! Open files: the meaning of an fd, and the links that hold a file after its fd is closed.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::sync::Arc;

use crate::address::PciAddress;
use crate::errno::errno;
use crate::events::{Event, Eventfd};

/// A file descriptor of a [`System`](crate::System). Calls accept any number, as the kernel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fd(pub i32);

/// Names a container, which exists as long as its file or a group in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ContainerId(pub u64);

/// Names an iommufd, which exists as long as its file, a device that is bound to it, or a group
/// whose container it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct IommufdId(pub u64);

/// Names an open file of a character device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CdevId(pub u64);

/// What an open file refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Container(ContainerId),
    Group(u32),
    /// A group of which vfio-pci has no device any more.
    Revoked,
    /// A device that was opened by its group.
    Device(PciAddress),
    Iommufd(IommufdId),
    /// The character device of a device.
    Cdev(PciAddress, CdevId),
    Eventfd,
    /// KVM's VFIO device.
    Kvm,
    /// A memfd of this size.
    Memory(u64),
}

#[derive(Debug)]
struct File {
    kind: Kind,
    /// Whether the fd is open.
    is_open: bool,
    /// The KVM devices that hold the file.
    links: Vec<Fd>,
}

/// All open files. A number of an fd is not reused.
#[derive(Debug, Default)]
pub(crate) struct Files {
    files: BTreeMap<Fd, File>,
    /// The counters of open eventfds.
    events: BTreeMap<Fd, Event>,
    last: i32,
}

impl Files {
    pub fn open(&mut self, kind: Kind) -> Fd {
        // Standard input, output and error are 0 to 2.
        self.last = self.last.max(2).saturating_add(1);
        let fd = Fd(self.last);
        let file = File { kind, is_open: true, links: Vec::new() };
        self.files.insert(fd, file);
        fd
    }

    pub fn open_eventfd(&mut self, event: Arc<dyn Eventfd>) -> Fd {
        let fd = self.open(Kind::Eventfd);
        self.events.insert(fd, Event(event));
        fd
    }

    /// The file of an fd: EBADF for an fd that is not open.
    pub fn kind(&self, fd: Fd) -> io::Result<Kind> {
        let file = self.files.get(&fd).filter(|file| file.is_open);
        file.map(|file| file.kind).ok_or_else(|| errno(libc::EBADF))
    }

    /// The eventfd of an fd: EBADF for an fd that is not open, EINVAL for another file.
    pub fn eventfd(&self, fd: Fd) -> io::Result<Event> {
        self.kind(fd)?;
        let event = self.events.get(&fd).cloned();
        event.ok_or_else(|| errno(libc::EINVAL))
    }

    /// All files, including those that only a link holds.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.files.values().map(|file| file.kind)
    }

    /// The open fds.
    pub fn fds(&self) -> impl Iterator<Item = Fd> {
        self.files.iter().filter(|(_, file)| file.is_open).map(|(fd, _)| *fd)
    }

    pub fn exists(&self, kind: Kind) -> bool {
        self.kinds().any(|other| other == kind)
    }

    /// The number of files of a kind.
    pub fn count(&self, kind: Kind) -> usize {
        self.kinds().filter(|other| *other == kind).count()
    }

    /// Closes an fd, and returns the files that this frees.
    pub fn close(&mut self, fd: Fd) -> io::Result<Vec<Kind>> {
        let kind = self.kind(fd)?;
        if let Some(file) = self.files.get_mut(&fd) {
            file.is_open = false;
        }
        self.events.remove(&fd);
        if kind != Kind::Kvm {
            let is_free = self.files.get(&fd).is_some_and(|file| file.links.is_empty());
            let file = if is_free { self.files.remove(&fd) } else { None };
            return Ok(file.into_iter().map(|file| file.kind).collect());
        }
        for file in self.files.values_mut() {
            file.links.retain(|kvm| *kvm != fd);
        }
        Ok(self.sweep())
    }

    /// Removes the files that nothing holds.
    fn sweep(&mut self) -> Vec<Kind> {
        let is_held = |(_, file): &(Fd, File)| file.is_open || !file.links.is_empty();
        let (held, gone): (_, Vec<_>) = mem::take(&mut self.files).into_iter().partition(is_held);
        self.files = held.into_iter().collect();
        gone.into_iter().map(|(_, file)| file.kind).collect()
    }

    /// Revokes the files of a group.
    pub fn revoke(&mut self, group: u32) {
        let files = self.files.values_mut();
        files
            .filter(|file| file.kind == Kind::Group(group))
            .for_each(|file| file.kind = Kind::Revoked);
    }

    pub fn is_linked(&self, kind: Kind) -> bool {
        let mut linked = self.files.values().filter(|file| !file.links.is_empty());
        linked.any(|file| file.kind == kind)
    }

    /// The files that a KVM holds.
    pub fn linked_with(&self, kvm: Fd) -> Vec<Kind> {
        let linked = self.files.values().filter(|file| file.links.contains(&kvm));
        linked.map(|file| file.kind).collect()
    }

    /// Links a file with a KVM; false if the link exists.
    pub fn link(&mut self, kvm: Fd, fd: Fd) -> bool {
        match self.files.get_mut(&fd).filter(|file| !file.links.contains(&kvm)) {
            Some(file) => {
                file.links.push(kvm);
                true
            }
            None => false,
        }
    }

    /// Removes a link; false if it does not exist.
    pub fn unlink(&mut self, kvm: Fd, fd: Fd) -> bool {
        let Some(file) = self.files.get_mut(&fd) else {
            return false;
        };
        let before = file.links.len();
        file.links.retain(|other| *other != kvm);
        file.links.len() < before
    }
}
