//! Accounts: cells with a balance, between which money is moved.

use anyhow::{Context, Result};
use rand::RngCore;
use rand::rngs::StdRng;

pub(crate) const OPENING_BALANCE: u64 = 1000;

/// 16 bytes, as keys that carry a little more than a number do.
pub(crate) fn key(account: u64) -> [u8; 16] {
    let mut key = *b"account:\0\0\0\0\0\0\0\0";
    key[8..].copy_from_slice(&account.to_be_bytes());
    key
}

/// Bytes that do not compress.
pub(crate) fn random_bytes(random: &mut StdRng, len: usize) -> Vec<u8> {
    let mut value = vec![0; len];
    random.fill_bytes(&mut value);
    value
}

/// A balance and bytes that do not compress, `len` of both.
pub(crate) fn opening_value(random: &mut StdRng, len: usize) -> Vec<u8> {
    with_balance(&random_bytes(random, len), OPENING_BALANCE)
}

pub(crate) fn balance(value: &[u8]) -> Result<u64> {
    Ok(u64::from_be_bytes(*value.first_chunk().context("a value is too short")?))
}

pub(crate) fn with_balance(value: &[u8], balance: u64) -> Vec<u8> {
    let mut value = value.to_vec();
    value[..8].copy_from_slice(&balance.to_be_bytes());
    value
}

/// The two values after `amount` was moved. An account without enough pays what it has.
pub(crate) fn moved(amount: u64, from: &[u8], to: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
    let amount = amount.min(balance(from)?);
    Ok((with_balance(from, balance(from)? - amount), with_balance(to, balance(to)? + amount)))
}
