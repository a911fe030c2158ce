//! How the C library's allocator keeps what was freed.

/// Has one heap for all threads, which keeps up to `kept` freed bytes at its end for what is allocated next.
///
/// A heap of each thread's own grows and shrinks by itself, a page at a time, and what is longer than 128 KiB comes from
/// the kernel and goes back to it: then a program that moves long messages has the kernel clear new pages all the time.
/// Other C libraries than glibc know nothing of this, and are left as they are. To be called before there are threads.
#[allow(unsafe_code)]
pub fn keep_freed(kept: usize) {
    #[cfg(target_env = "gnu")]
    {
        let kept = libc::c_int::try_from(kept).unwrap_or(libc::c_int::MAX);
        // SAFETY: mallopt(3) takes two numbers, and returns 0 where it knows better.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 1);
            libc::mallopt(libc::M_TRIM_THRESHOLD, kept);
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST);
        }
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = kept;
}

/// Gives back to the kernel what is freed and was kept. Takes about a millisecond for 16 MiB, in which nothing is
/// allocated.
#[allow(unsafe_code)]
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes a number, and gives back what nobody has.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The longest piece that the heap is made to give, in bytes: glibc takes no more where addresses have 32 bits.
#[cfg(target_env = "gnu")]
const LARGEST: libc::c_int = match cfg!(target_pointer_width = "64") {
    true => 8 << 20,
    false => 512 << 10,
};
