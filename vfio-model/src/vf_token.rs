//! VF tokens: who opens a virtual function proves that its physical function's user trusts it.
//!
//! Each physical function on vfio-pci has a token, at first a random one. A virtual function that
//! vfio-pci made (`enable_sriov`) is opened with the token of its physical function; that one is
//! opened with the token while its virtual functions are open, and with any token, which it then
//! has, while they are not (`vfio_pci_validate_vf_token`).

use std::io;

use vfio_bindings::bindings::vfio as sys;

use crate::address::PciAddress;
use crate::errno::errno;
use crate::files::Fd;
use crate::info::word;
use crate::state::{State, System, Token};

/// The size of `struct vfio_device_feature` without its data.
const FEATURE: usize = 8;
/// The operations on a feature: get, set, probe.
const OPERATIONS: [u32; 3] =
    [sys::VFIO_DEVICE_FEATURE_GET, sys::VFIO_DEVICE_FEATURE_SET, sys::VFIO_DEVICE_FEATURE_PROBE];

impl System {
    /// `VFIO_DEVICE_FEATURE` (`vfio_pci_core_feature_token`). The buffer holds
    /// `struct vfio_device_feature` with its data. The model has the feature `PCI_VF_TOKEN` only:
    /// it sets the token of a physical function.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: `argsz` is too small, a flag is unknown, or the token is not set but read.
    /// - `ENOTTY`: the kernel or the device has no such feature.
    pub fn device_feature(&self, device: Fd, buffer: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let address = state.device_of(device)?;
        if !state.description.kernel.has_vf_tokens() {
            return state.unknown_ioctl(device);
        }
        let [get, set, probe] = OPERATIONS;
        let (size, flags) = (word(buffer, 0) as usize, word(buffer, 4));
        let known = get | set | probe | sys::VFIO_DEVICE_FEATURE_MASK;
        let is_both = flags & probe == 0 && flags & (get | set) == get | set;
        if size < FEATURE || flags & !known != 0 || is_both {
            return Err(errno(libc::EINVAL));
        }
        let feature = flags & sys::VFIO_DEVICE_FEATURE_MASK;
        let has_token = state.description.sr_iov.contains_key(&address);
        if feature != sys::VFIO_DEVICE_FEATURE_PCI_VF_TOKEN || !has_token {
            return Err(errno(libc::ENOTTY));
        }
        let data = buffer.get(FEATURE..size.min(buffer.len())).and_then(|data| data.first_chunk());
        match (flags & get, flags & probe, flags & set, data) {
            (0, 0, 1.., Some(token)) => state.tokens.insert(address, *token),
            (0, 1.., _, _) => None,
            _ => return Err(errno(libc::EINVAL)),
        };
        Ok(())
    }
}

impl State {
    /// Checks the token, or the lack of one, with which a device is opened.
    ///
    /// # Errors
    ///
    /// - `EACCES`: the device needs a token, or another one.
    /// - `EINVAL`: the device takes no token.
    pub fn check_token(&mut self, address: PciAddress, token: Option<Token>) -> io::Result<()> {
        let description = &self.description;
        let mut pairs = description.sr_iov.iter();
        let physical = pairs.find(|(_, virtuals)| virtuals.contains(&address)).map(|(own, _)| *own);
        if let Some(physical) = physical {
            let found = self.tokens.get(&physical);
            return is_one(token.is_some() && token.as_ref() == found, libc::EACCES);
        }
        let Some(virtuals) = description.sr_iov.get(&address) else {
            return is_one(token.is_none(), libc::EINVAL);
        };
        if virtuals.iter().any(|own| self.is_used(*own)) {
            let found = self.tokens.get(&address);
            return is_one(token.is_some() && token.as_ref() == found, libc::EACCES);
        }
        self.tokens.extend(token.map(|token| (address, token)));
        Ok(())
    }
}

fn is_one(right: bool, number: i32) -> io::Result<()> {
    if right { Ok(()) } else { Err(errno(number)) }
}

/// The options behind a device's name: spaces, and at most one token (`vfio_pci_core_match`).
pub(crate) fn options(text: &str) -> io::Result<Option<Token>> {
    let mut words = text.split(' ').filter(|word| !word.is_empty());
    let token = words.next().map(|word| {
        let token = word.strip_prefix("vf_token=").and_then(uuid);
        token.ok_or_else(|| errno(libc::EINVAL))
    });
    match words.next() {
        None => token.transpose(),
        Some(_) => Err(errno(libc::EINVAL)),
    }
}

/// Hexadecimal digits in groups of 8, 4, 4, 4 and 12, with hyphens between them.
fn uuid(text: &str) -> Option<Token> {
    let lengths = text.split('-').map(str::len);
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
    if !is_hex || !lengths.eq([8, 4, 4, 4, 12]) {
        return None;
    }
    let digits = std::str::from_utf8(&digits).ok()?;
    Some(u128::from_str_radix(digits, 16).ok()?.to_be_bytes())
}
