package firmware

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/crypto/blake2b"
)

// An fwup archive holds meta.conf, before it the signature over its bytes, and
// the resources that meta.conf lists with their hashes.
const (
	signatureName = "meta.conf.ed25519"
	metaName      = "meta.conf"
	metaLeast     = 10 // bytes; fwup takes 10 to 49999
	metaMost      = 49999
)

// uuidSalt precedes meta.conf in the hash whose beginning is the uuid.
var uuidSalt = []byte{0x20, 0x53, 0xdf, 0xfb, 0xd5, 0x1e, 0x43, 0x10, 0xb9, 0x3b, 0x95, 0x6d, 0xa8, 0x9f, 0x9f, 0x34}

// vcdiffMagic begins what NervesHub puts in place of a resource in a delta.
var vcdiffMagic = []byte{0xd6, 0xc3, 0xc4, 0x00}

// inspectFwup judges an archive. Nothing but meta.conf is unpacked before its
// signature is found good or missing, and that it is missing is told last.
func inspectFwup(img *Image, r io.ReaderAt, size int64, keys Keys, limits Limits) error {
	members, err := readArchive(r, size, limits.Members)
	if err != nil {
		return err
	}
	text, sig, members, err := readMeta(r, members)
	if err != nil {
		return err
	}
	if sig != nil {
		if err := verifyMeta(img, text, sig, keys); err != nil {
			return err
		}
	}
	if err := readMetadata(img, text, r, size, members, limits); err != nil {
		return err
	}
	if img.Signature == Unsigned {
		return refuse(Unsigned, "the archive has no %s", signatureName)
	}
	return nil
}

// readMeta unpacks the first members and returns the others. sig is nil if the
// archive has none.
func readMeta(r io.ReaderAt, members []member) (text, sig []byte, rest []member, err error) {
	if members[0].name == signatureName {
		m := &members[0]
		if m.size != ed25519.SignatureSize {
			return nil, nil, nil, refuse(Malformed, "%s has %d bytes, not %d", signatureName, m.size, ed25519.SignatureSize)
		}
		var b bytes.Buffer
		if err := m.unpack(r, &b); err != nil {
			return nil, nil, nil, err
		}
		sig, members = b.Bytes(), members[1:]
	}
	if len(members) == 0 || members[0].name != metaName {
		return nil, nil, nil, refuse(Malformed, "%s is not where it belongs, first after the signature", metaName)
	}
	if slices.ContainsFunc(members, func(m member) bool { return m.name == signatureName }) {
		return nil, nil, nil, refuse(Malformed, "%s is not the first member, where alone fwup looks for it", signatureName)
	}
	m := &members[0]
	switch {
	case m.size > metaMost:
		return nil, nil, nil, refuse(TooBig, "%s has %d bytes, fwup takes at most %d", metaName, m.size, metaMost)
	case m.size < metaLeast:
		return nil, nil, nil, refuse(Malformed, "%s has %d bytes, fwup wants at least %d", metaName, m.size, metaLeast)
	}
	var b bytes.Buffer
	if err := m.unpack(r, &b); err != nil {
		return nil, nil, nil, err
	}
	return b.Bytes(), sig, members[1:], nil
}

// verifyMeta finds the trusted key that signed. The signature names none, so
// that a stranger's cannot be told from a damaged one.
func verifyMeta(img *Image, text, sig []byte, keys Keys) error {
	for _, k := range keys.ed25519 {
		if ed25519.Verify(k, text, sig) {
			img.Signature, img.Key = OK, base64.StdEncoding.EncodeToString(k)
			return nil
		}
	}
	img.Signature = BadSignature
	if len(keys.ed25519) == 0 {
		img.Signature = UnknownKey
		return refuse(UnknownKey, "it is signed, and no Ed25519 key is trusted")
	}
	return refuse(BadSignature, "none of the %d trusted Ed25519 keys made the signature over %s", len(keys.ed25519), metaName)
}

// readMetadata reads meta.conf, compares the members with it and unpacks every
// one of them.
func readMetadata(img *Image, text []byte, r io.ReaderAt, size int64, members []member, limits Limits) error {
	img.UUID = fwupUUID(text)
	meta, err := parseMeta(string(text))
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		to   *string
	}{{"meta-product", &img.Product}, {"meta-version", &img.Version},
		{"meta-platform", &img.Platform}, {"meta-architecture", &img.Architecture}} {
		values := meta.values[f.name]
		if len(values) != 1 || values[0] == "" || !printable(values[0]) {
			return refuse(Malformed, "%s has no usable %s", metaName, f.name)
		}
		*f.to = values[0]
	}
	files, err := meta.resources(limits.Expanded)
	if err != nil {
		return err
	}
	if err := checkExpansion(files, size, limits); err != nil {
		return err
	}
	contents, err := match(files, members, r)
	if err != nil {
		return err
	}
	for _, c := range contents {
		if err := img.add(c.file.name, c.file.size, c); err != nil {
			return err
		}
	}
	if !semantic(img.Version) {
		return refuse(BadVersion, "meta-version is %q, which is not a semantic version", img.Version)
	}
	return nil
}

// fwupUUID is fwup's: of meta.conf alone, so that signing again keeps it. The
// variant bits of RFC 9562 are left as they fall.
func fwupUUID(text []byte) string {
	d := blake2b.Sum256(append(uuidSalt[:len(uuidSalt):len(uuidSalt)], text...))
	d[6] = d[6]&0x0f | 0x50
	return uuid(d[:16])
}

func checkExpansion(files []fileResource, size int64, limits Limits) error {
	var sum int64
	for _, f := range files {
		if f.size > limits.Expanded-sum {
			return refuse(TooBig, "the resources have more than %d bytes", limits.Expanded)
		}
		sum += f.size
	}
	if sum > freeExpansion && sum/limits.Ratio > size {
		return refuse(TooBig, "the archive has %d bytes and unpacks to %d, more than %d times as much", size, sum, limits.Ratio)
	}
	return nil
}

// match finds each resource's member. Nothing may be left over, and a delta is
// told from a damaged archive: a member in it is a VCDIFF stream, and those not
// needed are left out.
func match(files []fileResource, members []member, r io.ReaderAt) ([]*packedFile, error) {
	byName := map[string]*member{}
	for i := range members {
		byName[members[i].name] = &members[i]
	}
	contents := make([]*packedFile, 0, len(files))
	var missing, differs error
	for _, f := range files {
		m := byName[memberName(f.name)]
		delete(byName, memberName(f.name))
		switch {
		case m == nil:
			missing = refuse(Malformed, "%s lists %q, which the archive does not hold", metaName, f.name)
		case m.size == f.stored:
			contents = append(contents, &packedFile{r: r, member: m, file: f})
		case bytes.Equal(m.begin(r, len(vcdiffMagic)), vcdiffMagic):
			return nil, refuseDelta("the archive is a delta: %q is a VCDIFF patch", f.name)
		default:
			differs = refuse(Malformed, "%s gives %q %d bytes, the archive holds %d", metaName, f.name, f.stored, m.size)
		}
	}
	for _, m := range members {
		if byName[m.name] != nil {
			return nil, refuse(Malformed, "the archive holds %q, which %s does not list", m.name, metaName)
		}
	}
	if differs != nil {
		return nil, differs
	}
	return contents, missing
}

// memberName is where a resource is in the archive.
func memberName(resource string) string {
	if root, ok := strings.CutPrefix(resource, "/"); ok {
		return root
	}
	return "data/" + resource
}

// A packedFile is a resource in an archive.
type packedFile struct {
	r      io.ReaderAt
	member *member
	file   fileResource
}

// writeTo unpacks the data runs, which are what the hash is of, and fills the
// holes between them.
func (p *packedFile) writeTo(w io.Writer) error {
	h, err := blake2b.New256(nil)
	if err != nil {
		return fmt.Errorf("blake2b: %w", err)
	}
	sparse := &sparseWriter{w: w, runs: slices.Clone(p.file.runs)}
	if err := p.member.unpack(p.r, io.MultiWriter(h, sparse)); err != nil {
		return err
	}
	if err := sparse.close(); err != nil {
		return err
	}
	if got := h.Sum(nil); !bytes.Equal(got, p.file.digest[:]) {
		return refuse(BadDigest, "%q has BLAKE2b-256 %x, %s says %x", p.file.name, got, metaName, p.file.digest)
	}
	return nil
}

// A sparseWriter writes data runs with zeros for the holes between them.
type sparseWriter struct {
	w    io.Writer
	runs []int64 // what is left, data first
}

func (s *sparseWriter) Write(b []byte) (int, error) {
	total := len(b)
	for len(b) > 0 {
		if len(s.runs) > 0 && s.runs[0] == 0 {
			if err := s.hole(); err != nil {
				return total - len(b), err
			}
			continue
		}
		if len(s.runs) == 0 {
			return total - len(b), io.ErrShortWrite // unpack lets no more through
		}
		n := min(int64(len(b)), s.runs[0])
		if _, err := s.w.Write(b[:n]); err != nil {
			return total - len(b), err
		}
		s.runs[0] -= n
		b = b[n:]
	}
	return total, nil
}

var zeros [32 << 10]byte

// hole ends a data run and writes the zeros that follow it.
func (s *sparseWriter) hole() error {
	s.runs = s.runs[1:]
	if len(s.runs) == 0 {
		return nil
	}
	for left := s.runs[0]; left > 0; {
		n, err := s.w.Write(zeros[:min(left, int64(len(zeros)))])
		if err != nil {
			return err
		}
		left -= int64(n)
	}
	s.runs = s.runs[1:]
	return nil
}

// close writes the holes after the last data.
func (s *sparseWriter) close() error {
	for len(s.runs) > 0 {
		if err := s.hole(); err != nil {
			return err
		}
	}
	return nil
}
