package firmware

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"io"
	"math/big"
	"slices"
)

// A Secure Boot v2 signature block, at the start of the last sector of a signed
// image (ets_secure_boot_sig_block_t). All integers are little-endian.
const (
	blockMagic   = 0xe7
	blockSize    = 1216
	blockMost    = 3 // in a sector
	blockRSA     = 2 // version; 3 is ECDSA
	blockDigest  = 4 // SHA-256 of all before the sector
	blockKey     = 36
	blockKeyEnd  = 812 // eFuse key digest = SHA-256 of the bytes from blockKey
	blockSig     = 812
	blockCRC     = 1196 // IEEE CRC-32 of all before it
	blockEnd     = 1200 // zeros follow
	rsaBytes     = 384  // RSA-3072
	blockSaltLen = 32
)

// secureBoot judges the signature of an image with at least one sector. It is
// false for an image without a signature block. Three blocks may share the
// sector, filled up with 0xff; NervesHub verifies the first only, and so does
// this.
func secureBoot(img *Image, r io.ReaderAt, size int64, keys Keys) (signed bool, err error) {
	if size <= espSector || size%espSector != 0 {
		return false, nil
	}
	var b [espSector]byte
	if err := readAt(r, b[:], size-espSector); err != nil {
		return false, err
	}
	if b[0] != blockMagic {
		return false, nil
	}
	rest := b[:]
	for n := 1; n <= blockMost && rest[0] == blockMagic; n++ {
		if crc32.ChecksumIEEE(rest[:blockCRC]) != binary.LittleEndian.Uint32(rest[blockCRC:]) {
			return true, refuse(Malformed, "the CRC of signature block %d is wrong", n)
		}
		if bytes.Count(rest[blockEnd:blockSize], []byte{0}) != blockSize-blockEnd {
			return true, refuse(Malformed, "signature block %d is not padded with zeros", n)
		}
		rest = rest[blockSize:]
	}
	if bytes.Count(rest, []byte{0xff}) != len(rest) {
		return true, refuse(Malformed, "the signature sector holds more than signature blocks")
	}
	if b[1] != blockRSA {
		return true, &VerdictError{Verdict: Unsupported, Reason: "the signature block is not RSA (version " + hex.EncodeToString(b[1:2]) + ")",
			Remedy: "sign with an RSA-3072 key, which is all NervesHub takes"}
	}
	h := sha256.New()
	if err := copySection(h, r, 0, size-espSector); err != nil {
		return true, err
	}
	digest := h.Sum(nil)
	if !bytes.Equal(digest, b[blockDigest:blockKey]) {
		return true, refuse(BadDigest, "the signature block is for other bytes: it has SHA-256 %x, the image %x", b[blockDigest:blockKey], digest)
	}
	return true, verifyBlock(img, b[:blockSize], digest, keys)
}

// verifyBlock verifies with the trusted key that is in the block as well. The
// boot ROM takes the key from the block and compares its digest with the eFuse,
// so that an image signed by a trusted key but with another in its block would
// not start.
func verifyBlock(img *Image, b, digest []byte, keys Keys) error {
	embedded := b[blockKey:blockKeyEnd]
	fingerprint := sha256.Sum256(embedded)
	i := slices.IndexFunc(keys.rsa, func(k *rsa.PublicKey) bool { return bytes.Equal(blockKeyOf(k), embedded) })
	switch {
	case len(keys.rsa) == 0:
		return refuse(UnknownKey, "it is signed by the key with digest %x, and no Secure Boot key is trusted", fingerprint)
	case i < 0:
		return refuse(UnknownKey, "it is signed by the key with digest %x, which is not trusted", fingerprint)
	}
	sig := slices.Clone(b[blockSig : blockSig+rsaBytes])
	slices.Reverse(sig)
	if rsa.VerifyPSS(keys.rsa[i], crypto.SHA256, digest, sig, &rsa.PSSOptions{SaltLength: blockSaltLen}) != nil {
		return refuse(BadSignature, "the signature is not by the key it names, digest %x", fingerprint)
	}
	img.Signature, img.Key = OK, hex.EncodeToString(fingerprint[:])
	return nil
}

// blockKeyOf is a key as a signature block has it: modulus, exponent, and what
// the boot ROM's Montgomery multiplier wants precomputed, R² mod n with
// R = 2^3072 and -n⁻¹ mod 2^32.
func blockKeyOf(k *rsa.PublicKey) []byte {
	one := big.NewInt(1)
	word := new(big.Int).Lsh(one, 32)
	rr := new(big.Int).Lsh(one, 2*8*rsaBytes)
	rr.Mod(rr, k.N)
	inverse := new(big.Int).ModInverse(k.N, word)
	if inverse == nil { // an even modulus is no RSA key
		return nil
	}
	m := new(big.Int).Sub(word, inverse)
	le := func(n *big.Int, size int) []byte {
		b := n.FillBytes(make([]byte, size))
		slices.Reverse(b)
		return b
	}
	e := binary.LittleEndian.AppendUint32(nil, uint32(k.E))
	return slices.Concat(le(k.N, rsaBytes), e, le(rr, rsaBytes), le(m, 4))
}
