//! A small KVM VMM.
