//! The program's memory. A wrong address is EFAULT, as it is for the kernel, and no signal.

use std::io::{self, IoSlice, IoSliceMut};

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

/// Reads up to `length` bytes, as far as there is memory.
pub fn read(address: usize, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    if length == 0 {
        return Ok(bytes);
    }
    let remote = [RemoteIoVec { base: address, len: length }];
    let read = process_vm_readv(Pid::this(), &mut [IoSliceMut::new(&mut bytes)], &remote)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Writes all bytes.
pub fn write(address: usize, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let remote = [RemoteIoVec { base: address, len: bytes.len() }];
    match process_vm_writev(Pid::this(), &[IoSlice::new(bytes)], &remote)? {
        written if written == bytes.len() => Ok(()),
        _ => Err(Errno::EFAULT.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_the_own_process() {
        let mut place = [1_u8, 2, 3];
        let address = place.as_mut_ptr() as usize;
        assert_eq!(read(address, 3).unwrap(), [1, 2, 3]);
        write(address, &[4]).unwrap();
        assert_eq!(place, [4, 2, 3]);
    }

    #[test]
    fn a_wrong_address_is_efault() {
        assert_eq!(read(8, 4).unwrap_err().raw_os_error(), Some(libc::EFAULT));
        assert_eq!(write(8, &[0]).unwrap_err().raw_os_error(), Some(libc::EFAULT));
    }
}
