package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"ganglion/firmware"
)

func imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Look into firmware images",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("image: there is no command %q; try ganglion image --help", args[0])}
			}
			cmd.Help()
			return usageError{errors.New("image: name a command: inspect")}
		},
	}
	cmd.AddCommand(imageInspectCommand())
	return cmd
}

func imageInspectCommand() *cobra.Command {
	var keys []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect [--json] [--key BASE64|FILE]... FILE",
		Short: "Say what is in a firmware image, who signed it, and what is wrong with it",
		Long: "Reads a fwup archive (*.fw) or an ESP-IDF application image (*.bin) as the gateway does before a device is\n" +
			"given it. Verdicts: ok, unsigned, unknown_key, bad_signature, bad_digest, bad_version, malformed, truncated,\n" +
			"too_big, unsafe_path, unsupported. Exit code 0: a device could be given it; 1: not; 2: wrong use.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("image inspect: takes one file (found %d); try ganglion image inspect --help", len(args))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			trusted, err := trustedKeys(keys)
			if err != nil {
				return usageError{err}
			}
			return inspectImage(cmd.OutOrStdout(), args[0], trusted, asJSON)
		},
	}
	cmd.Flags().StringArrayVar(&keys, "key", nil, "trust this public `key`: the base64 of an Ed25519 key, or a file with one or with RSA-3072 keys in PEM; may be repeated")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// keyFileMost is the largest file of keys that is read, in bytes.
const keyFileMost = 64 << 10

// trustedKeys reads what --key was given: keys, or files of keys.
func trustedKeys(given []string) (firmware.Keys, error) {
	var texts []string
	for _, g := range given {
		if _, err := firmware.ParseKeys(g); err == nil {
			texts = append(texts, g)
			continue
		}
		text, err := readKeyFile(g)
		if err != nil {
			return firmware.Keys{}, fmt.Errorf("image inspect: --key: %q is neither a public key nor a file with one: %w", g, err)
		}
		found := splitKeys(text)
		if len(found) == 0 {
			return firmware.Keys{}, fmt.Errorf("image inspect: --key: %s is empty", g)
		}
		if _, err := firmware.ParseKeys(found...); err != nil {
			return firmware.Keys{}, fmt.Errorf("image inspect: --key: %s: %w", g, err)
		}
		texts = append(texts, found...)
	}
	return firmware.ParseKeys(texts...)
}

func readKeyFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, keyFileMost+1))
	if err == nil && len(text) > keyFileMost {
		err = fmt.Errorf("it has more than %d bytes", keyFileMost)
	}
	return string(text), err
}

// splitKeys finds the PEM blocks in a file, and the lines outside of them.
func splitKeys(text string) []string {
	var all []string
	for text = strings.TrimSpace(text); text != ""; text = strings.TrimSpace(text) {
		end := strings.IndexByte(text, '\n') + 1
		if at := strings.Index(text, "-----END "); strings.HasPrefix(text, "-----BEGIN ") && at >= 0 {
			end = at + strings.IndexByte(text[at:], '\n') + 1
			if end == at {
				end = 0
			}
		}
		if end == 0 {
			end = len(text)
		}
		all = append(all, text[:end])
		text = text[end:]
	}
	return all
}

// An inspection is what is printed as JSON.
type inspection struct {
	Verdict      firmware.Verdict `json:"verdict"`
	Reason       string           `json:"reason"`
	Kind         firmware.Kind    `json:"kind"`
	UUID         string           `json:"uuid"`
	Product      string           `json:"product"`
	Version      string           `json:"version"`
	Platform     string           `json:"platform"`
	Architecture string           `json:"architecture"`
	Key          string           `json:"key"`
	Resources    []inspected      `json:"resources"`
}

type inspected struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// inspectImage prints what the file is. An image that is refused is an error.
func inspectImage(w io.Writer, name string, keys firmware.Keys, asJSON bool) error {
	info, err := os.Stat(name)
	if err != nil {
		return usageError{fmt.Errorf("image inspect: %w", err)}
	}
	if !info.Mode().IsRegular() { // opening a pipe would wait for its other end
		return usageError{fmt.Errorf("image inspect: %s is not a regular file", name)}
	}
	f, err := os.Open(name)
	if err != nil {
		return usageError{fmt.Errorf("image inspect: %w", err)}
	}
	defer f.Close()
	img, err := firmware.Inspect(f, info.Size(), keys, firmware.Limits{})
	refused, judged := errors.AsType[*firmware.VerdictError](err)
	if err != nil && !judged {
		return fmt.Errorf("image inspect: %s: %w", name, err)
	}
	found := describeImage(img, refused)
	print := printImage
	if asJSON {
		print = func(w io.Writer, found inspection) error { return json.NewEncoder(w).Encode(found) }
	}
	if err := print(w, found); err != nil {
		return fmt.Errorf("image inspect: %w", err)
	}
	if refused != nil {
		return fmt.Errorf("image inspect: %s: %w; %s", name, refused, refused.Remedy)
	}
	return nil
}

func describeImage(img firmware.Image, refused *firmware.VerdictError) inspection {
	found := inspection{Verdict: firmware.OK, Kind: img.Kind, UUID: img.UUID, Product: img.Product, Version: img.Version,
		Platform: img.Platform, Architecture: img.Architecture, Key: img.Key, Resources: []inspected{}}
	switch {
	case refused != nil:
		found.Verdict, found.Reason = refused.Verdict, refused.Reason
	case img.Signature == firmware.Unsigned:
		found.Reason = "whole, and not signed: only for devices that accept unsigned images"
	default:
		found.Reason = "whole, and signed by a trusted key"
	}
	for _, r := range img.Resources {
		found.Resources = append(found.Resources, inspected{r.Name, r.Size, hex.EncodeToString(r.SHA256[:])})
	}
	return found
}

// printImage prints for people. The texts of an image are printable; the names
// of its resources too.
func printImage(w io.Writer, found inspection) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range [][2]string{{"verdict", string(found.Verdict)}, {"reason", found.Reason}, {"kind", string(found.Kind)},
		{"uuid", found.UUID}, {"product", found.Product}, {"version", found.Version}, {"platform", found.Platform},
		{"architecture", found.Architecture}, {"key", found.Key}} {
		if row[1] != "" {
			fmt.Fprintf(t, "%s\t%s\n", row[0], row[1])
		}
	}
	for _, r := range found.Resources {
		fmt.Fprintf(t, "resource\t%s, %d bytes, SHA-256 %s\n", r.Name, r.Size, r.SHA256)
	}
	return t.Flush()
}
