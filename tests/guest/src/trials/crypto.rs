//! A cipher of virtio-crypto, by the kernel's sockets for ciphers (AF_ALG).

use std::io::IoSlice;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, AlgAddr, ControlMessage, MsgFlags, SockFlag, SockType, accept, bind, recv,
    sendmsg, setsockopt, socket, sockopt,
};

use super::hex;
use crate::system::Error;

/// The driver's name of AES-CBC, so that no other driver does the work.
const CIPHER: &str = "virtio_crypto_aes_cbc";
/// Key, initialization vector and plain text of NIST SP 800-38A, F.2.1.
const KEY: u128 = 0x2b7e_1516_28ae_d2a6_abf7_1588_09cf_4f3c;
const VECTOR: u128 = 0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f;
const PLAIN: u128 = 0x6bc1_bee2_2e40_9f96_e93d_7e11_7393_172a;

/// Encrypts one block, and returns the result.
pub fn encrypt() -> Result<String, Error> {
    block().map(|bytes| hex(&bytes)).map_err(|errno| Error::file("use", CIPHER)(errno.into()))
}

fn block() -> nix::Result<[u8; 16]> {
    let cipher = socket(AddressFamily::Alg, SockType::SeqPacket, SockFlag::empty(), None)?;
    bind(cipher.as_raw_fd(), &AlgAddr::new("skcipher", CIPHER))?;
    setsockopt(&cipher, sockopt::AlgSetKey::default(), &KEY.to_be_bytes().as_slice())?;
    // SAFETY: `accept` returns a new fd, which nothing else owns.
    let session = unsafe { OwnedFd::from_raw_fd(accept(cipher.as_raw_fd())?) };
    let (vector, plain) = (VECTOR.to_be_bytes(), PLAIN.to_be_bytes());
    let control =
        [ControlMessage::AlgSetOp(&libc::ALG_OP_ENCRYPT), ControlMessage::AlgSetIv(&vector)];
    let data = [IoSlice::new(&plain)];
    sendmsg::<()>(session.as_raw_fd(), &data, &control, MsgFlags::empty(), None)?;
    let mut result = [0; 16];
    recv(session.as_raw_fd(), &mut result, MsgFlags::empty())?;
    Ok(result)
}
