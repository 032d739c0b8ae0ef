//! Files to build from: the same bytes for the same seed, on every machine.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::Result;

/// The same numbers for the same seed (xorshift64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // Neighbouring seeds shall not begin alike, and zero would stay zero.
        Self((seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xd134_2543_de82_ef95) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Writes a file that cannot be compressed.
    pub(crate) fn noise(&mut self, path: &Path, size_bytes: usize) -> Result<()> {
        let mut file = BufWriter::with_capacity(1 << 16, File::create(path)?);
        for _ in 0..size_bytes / 8 {
            file.write_all(&self.next().to_le_bytes())?;
        }
        Ok(file.flush()?)
    }

    /// Writes a file of words, which gzip makes three to four times smaller.
    pub(crate) fn text(&mut self, path: &Path, size_bytes: usize) -> Result<()> {
        let words: Vec<String> = (0..256).map(|_| format!("{:x} ", self.next() >> (40 - self.next() % 24))).collect();
        let mut file = BufWriter::with_capacity(1 << 16, File::create(path)?);
        let mut left = size_bytes;
        while left > 0 {
            let word = words[self.next() as usize % words.len()].as_bytes();
            let word = &word[..word.len().min(left)];
            file.write_all(word)?;
            left -= word.len();
        }
        Ok(file.flush()?)
    }

    /// Writes `count` big files below `dir`, every other one of them incompressible.
    pub(crate) fn big_files(&mut self, dir: &Path, count: usize, size_bytes: usize) -> Result<()> {
        fs::create_dir_all(dir)?;
        for file in 0..count {
            let path = dir.join(file.to_string());
            if file % 2 == 0 { self.noise(&path, size_bytes)? } else { self.text(&path, size_bytes)? }
        }
        Ok(())
    }

    /// Writes `count` files of 4,000 bytes, a hundred in a folder: numbers, of which half are repeated.
    pub(crate) fn small_files(&mut self, dir: &Path, count: usize) -> Result<()> {
        let mut content = Vec::with_capacity(4000);
        for number in 0..count {
            let folder = dir.join(format!("d{:04}", number / 100));
            if number % 100 == 0 {
                fs::create_dir_all(&folder)?;
            }
            content.clear();
            while content.len() < 4000 {
                let value = format!("{:016x}\n", self.next());
                content.extend_from_slice(value.as_bytes());
                content.extend_from_slice(value.as_bytes());
            }
            content.truncate(4000);
            fs::write(folder.join(format!("f{number:06}")), &content)?;
        }
        Ok(())
    }
}
