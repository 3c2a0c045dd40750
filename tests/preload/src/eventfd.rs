//! The program's files that are passed to the model: eventfds, memfds, and files that are neither.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vfio_model::{Eventfd, Fd, System};

/// An eventfd of the program. The kernel holds its counter, as here, until the last user is gone.
struct Own(File);

impl Eventfd for Own {
    fn signal(&self) {
        // It fails if the counter is at its maximum, and then the kernel does not add either.
        let _ = (&self.0).write(&1_u64.to_ne_bytes());
    }

    fn take(&self) -> u64 {
        let mut count = [0; 8];
        let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let is_signalled = poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
        let read = is_signalled.then(|| (&self.0).read_exact(&mut count).ok()).flatten();
        read.map_or(0, |()| u64::from_ne_bytes(count))
    }
}

/// Opens a file of the program in the model, to be closed after the call that gets it.
pub fn open_in(system: &System, fd: BorrowedFd<'_>, number: i32) -> io::Result<Fd> {
    let link = fs::read_link(format!("/proc/self/fd/{number}")).map_err(|_| Errno::EBADF)?;
    let link = link.to_string_lossy();
    let file = File::from(fd.try_clone_to_owned()?);
    Ok(match link.as_ref() {
        "anon_inode:[eventfd]" => system.open_eventfd_of(Arc::new(Own(file))),
        link if link.starts_with("/memfd:") => system.open_memory(file.metadata()?.len()),
        // To the model, a memfd is a file that is no eventfd and no file of VFIO.
        _ => system.open_memory(0),
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use nix::sys::eventfd::EventFd;

    use super::*;

    #[test]
    fn signals_reach_the_programs_eventfd() {
        let eventfd = EventFd::new().unwrap();
        let own = Own(File::from(eventfd.as_fd().try_clone_to_owned().unwrap()));
        assert_eq!(own.take(), 0);
        own.signal();
        own.signal();
        assert_eq!(eventfd.read().unwrap(), 2);
        eventfd.write(5).unwrap();
        assert_eq!(own.take(), 5);
    }

    #[test]
    fn only_an_eventfd_is_one() {
        let system = vfio_model::Description::new(vfio_model::Kernel::Linux7_3).build();
        let (null, eventfd) = (File::open("/dev/null").unwrap(), EventFd::new().unwrap());
        let other = open_in(&system, null.as_fd(), null.as_raw_fd()).unwrap();
        assert!(system.signal(other).is_err());
        let fd = eventfd.as_fd();
        system.signal(open_in(&system, fd, fd.as_raw_fd()).unwrap()).unwrap();
        assert_eq!(eventfd.read().unwrap(), 1);
    }
}
