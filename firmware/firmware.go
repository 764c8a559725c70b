// Package firmware judges firmware images before a device is offered a byte of
// them: what an image is, who signed it, whether it is whole, and what can be
// taken out of it to be flashed. It knows the two formats NervesHub stores,
// fwup archives and ESP-IDF application images, tells deltas from them, and
// rebuilds an ESP-IDF image from a detools patch.
//
// It must not know where images come from, where they are kept or which device
// wants them: it reads what it is given, trusts the keys it is given, and
// writes nothing but the resource it is asked for. Images are foreign bytes;
// memory stays bounded whatever they say of themselves.
package firmware

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
)

// A Verdict is what is wrong with an image, in one word.
type Verdict string

const (
	OK           Verdict = "ok"
	BadSignature Verdict = "bad_signature" // made by no trusted key, or over other bytes
	UnknownKey   Verdict = "unknown_key"   // by a key that is not trusted, or no key is
	Unsigned     Verdict = "unsigned"
	BadDigest    Verdict = "bad_digest" // the content is not what its hash or checksum says
	Malformed    Verdict = "malformed"
	TooBig       Verdict = "too_big" // for the limits, or for what it declares itself
	UnsafePath   Verdict = "unsafe_path"
	WrongBase    Verdict = "wrong_base" // a patch applied to another image than it is for
	Truncated    Verdict = "truncated"
	Unsupported  Verdict = "unsupported" // well-formed, of a kind that is not handled
	BadVersion   Verdict = "bad_version" // no semantic version
)

// remedies say what to do about a verdict unless there is better advice.
var remedies = map[Verdict]string{
	BadSignature: "sign the image with a trusted key, or trust the key it was signed with",
	UnknownKey:   "trust the public key it was signed with, or sign it with a trusted one",
	Unsigned:     "sign it, or accept unsigned images for these devices",
	BadDigest:    "fetch it again; if it stays so, build and sign it again",
	Malformed:    "fetch it again; if it stays so, build it again and do not repack it",
	TooBig:       "make the image smaller, or raise the limit",
	UnsafePath:   "give its resources plain names, without . or .. or backslashes",
	WrongBase:    "have the full image sent: turn deltas off in the deployment group",
	Truncated:    "fetch it again; if it stays so, upload it again",
	Unsupported:  "build a full image",
	BadVersion:   "give it a semantic version, like 1.2.3",
}

// A VerdictError refuses an image. Any other error of this package says that
// the image could not be read, or what was taken out of it not be written.
type VerdictError struct {
	Verdict Verdict // not OK
	Reason  string  // one sentence, without a full stop
	Remedy  string  // what to do about it
}

func (e *VerdictError) Error() string { return string(e.Verdict) + ": " + e.Reason }

// refuse is a VerdictError with the usual remedy.
func refuse(v Verdict, format string, args ...any) error {
	return &VerdictError{Verdict: v, Reason: fmt.Sprintf(format, args...), Remedy: remedies[v]}
}

// A Kind is the format of an image, by the name NervesHub has for its tool.
type Kind string

const (
	Fwup Kind = "fwup"    // archive of named resources; file name *.fw
	ESP  Kind = "esp-idf" // application image; file name *.bin

	// Patch is a detools delta from one ESP-IDF image to another. The update
	// that offers it does not say so; only its first byte does.
	Patch Kind = "detools"
)

// Limits bound what an image may claim. Zero fields mean the defaults.
type Limits struct {
	Size     int64 // bytes of the image itself; default 256 MiB
	Expanded int64 // bytes of all its resources, unpacked; default 1 GiB
	Ratio    int64 // Expanded by Size, once Expanded is over 16 MiB; default 200
	Members  int   // of an archive; default 1024
}

// freeExpansion is what any image may unpack to, whatever its ratio: erased
// flash and zeros compress a thousandfold.
const freeExpansion = 16 << 20

func (l Limits) withDefaults() Limits {
	set := func(v *int64, to int64) {
		if *v <= 0 {
			*v = to
		}
	}
	set(&l.Size, 256<<20)
	set(&l.Expanded, 1<<30)
	set(&l.Ratio, 200)
	if l.Members <= 0 {
		l.Members = 1024
	}
	return l
}

// An Image is what Inspect found. After a refusal it holds what was read until
// then, for the log; nothing of that is to be relied on.
type Image struct {
	Kind                                           Kind
	UUID, Product, Version, Platform, Architecture string

	// Signature is OK when a trusted key made it. An ESP-IDF image is whole
	// without one; whether it may be used then is the caller's decision.
	Signature Verdict

	// Key is the fingerprint of the key that signed: an Ed25519 key's own text
	// form, the eFuse key digest of a Secure Boot key.
	Key string

	Resources []Resource

	contents map[string]content
}

// A Resource is a file to be flashed.
type Resource struct {
	Name   string   // in an fwup archive; Whole in an ESP-IDF image
	Size   int64    // bytes, holes included
	SHA256 [32]byte // of all these bytes
}

// Whole names the only resource of an ESP-IDF image: the image as it is.
const Whole = "image"

// A content writes the bytes of a resource and fails unless they are those the
// image was signed for.
type content interface{ writeTo(w io.Writer) error }

// Inspect judges the image in the first size bytes of r. A nil error is the
// verdict OK. Of an image that is refused with Unsigned everything else is in
// order, and only of that can something be extracted after a refusal. The image
// goes on reading from r, which must not change.
func Inspect(r io.ReaderAt, size int64, keys Keys, limits Limits) (Image, error) {
	limits = limits.withDefaults()
	img := Image{Signature: Unsigned}
	var first [4]byte
	n, err := r.ReadAt(first[:min(max(size, 0), 4)], 0)
	switch {
	case err != nil && err != io.EOF:
		return img, fmt.Errorf("firmware: read: %w", err)
	case n == 0:
		return img, refuse(Malformed, "the file is empty")
	case size > limits.Size:
		return img, refuse(TooBig, "the file has %d bytes, at most %d are allowed", size, limits.Size)
	}
	img.contents = map[string]content{}
	switch {
	case first[0] == espMagic:
		img.Kind = ESP
		err = inspectESP(&img, r, size, keys)
	case IsPatch(first[:]):
		img.Kind = Patch
		err = refuseDelta("the file is a detools patch, which is worth nothing without the image it starts from")
	case first[0] == 'P' && (n < 2 || first[1] == 'K'):
		img.Kind = Fwup
		err = inspectFwup(&img, r, size, keys, limits)
	default:
		err = refuse(Malformed, "the file begins with %x, as neither an fwup archive nor an ESP-IDF image does", first[:n])
	}
	if err == nil {
		return img, nil
	}
	v, judged := errors.AsType[*VerdictError](err)
	if !judged || v.Verdict != Unsigned {
		img.contents = nil
	}
	if !judged {
		err = fmt.Errorf("firmware: %w", err)
	}
	return img, err
}

func refuseDelta(format string, args ...any) error {
	return &VerdictError{Verdict: Unsupported, Reason: fmt.Sprintf(format, args...),
		Remedy: remedies[WrongBase]}
}

// Extract writes a resource to w, holes filled with zeros. What is written is
// verified on the way, against what the signature covers: only when Extract
// returns nil may it be used. Several may run at once.
func (i Image) Extract(w io.Writer, resource string) error {
	c, ok := i.contents[resource]
	if !ok {
		return fmt.Errorf("firmware: extract: the image has no resource %q", resource)
	}
	if err := c.writeTo(w); err != nil {
		return fmt.Errorf("firmware: extract %q: %w", resource, err)
	}
	return nil
}

// add reads a resource once, so that it is verified and its SHA-256 known.
func (i *Image) add(name string, size int64, c content) error {
	h := sha256.New()
	if err := c.writeTo(h); err != nil {
		return err
	}
	i.Resources = append(i.Resources, Resource{Name: name, Size: size, SHA256: [32]byte(h.Sum(nil))})
	i.contents[name] = c
	return nil
}

// readAt fills b from r. That r ends before is the image's fault.
func readAt(r io.ReaderAt, b []byte, at int64) error {
	switch n, err := r.ReadAt(b, at); {
	case n == len(b):
		return nil
	case err == io.EOF:
		return refuse(Truncated, "the file ends at %d, within something that goes to %d", at+int64(n), at+int64(len(b)))
	default:
		return fmt.Errorf("read: %w", err)
	}
}
