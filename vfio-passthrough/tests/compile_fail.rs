//! Programs that must not compile: memory is freed or moved while devices can access it, a window
//! outlives its device, a route is used after its irqfd is detached.

#[test]
fn unsound_programs_do_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
