//! The number of the guest's vCPUs.

use kvm_ioctls::Kvm;

use crate::error::Error;

/// Refuses more vCPUs than KVM supports, which is at least one.
pub(crate) fn check_count(kvm: &Kvm, asked: u8) -> Result<(), Error> {
    if asked == 1 {
        return Ok(());
    }
    let most = kvm.get_max_vcpus();
    match usize::from(asked) > most {
        true => Err(Error::TooManyCpus { asked, most }),
        false => Ok(()),
    }
}
