//! Giving back what only the start needed.
//!
//! Parsing options, unpacking kernels and describing the machine run once, but their code and their
//! heap would stay resident as long as the VM runs: some 1.5 MiB for each VM. What stays in use stands
//! together in the program, see `resources/link/resident.ld`.

/// Unmaps the program's own code and constants, clean pages of its file, and trims the heap. What
/// is used again comes back from the page cache, page by page, at its next use.
pub fn release() {
    unsafe extern "C" {
        // Made by the linker (ld, "PROVIDE"): the first byte of the program and the first behind
        // its code. Only their addresses mean something.
        static __executable_start: u8;
        static etext: u8;
    }
    const PAGE: usize = 4096;
    let start = (&raw const __executable_start).addr() & !(PAGE - 1);
    let end = (&raw const etext).addr() & !(PAGE - 1);
    // SAFETY: the pages of a private file mapping that nobody writes to are the file's; dropping
    // them loses nothing. malloc_trim only returns free memory.
    unsafe {
        // An error leaves everything as it was.
        libc::madvise(start as *mut libc::c_void, end.saturating_sub(start), libc::MADV_DONTNEED);
        libc::malloc_trim(0);
    }
}
