//! Names of the system calls that only aarch64 has: none that this VMM could make by mistake.

/// Numbers and names.
pub(crate) const NAMES: &[(i64, &str)] = &[];

#[cfg(test)]
mod tests {
    use crate::host::seccomp::names::of;

    #[test]
    fn every_call_has_its_name() {
        let cases = [(63, "read"), (29, "ioctl"), (56, "openat"), (435, "clone3"), (462, "mseal")];
        cases.iter().for_each(|(number, name)| assert_eq!(of(*number), Some(*name)));
    }
}
