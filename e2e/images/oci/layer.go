// Package oci makes container images from files, reproducibly and without a
// container engine: layers ([NewLayer]), images ([NewImage]) and the archives
// that container runtimes import ([WriteArchive]).
//
// Equal files give an equal digest, whoever builds them and whenever. Package
// build says what is in Outrigger's images.
package oci

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// A File is one entry of a layer, owned by root. Exactly one of Source, Data,
// Link and Dir says what it is; none of them makes an empty file.
type File struct {
	// Path is where the file lies in the image, without a leading slash.
	// Folders that lead to it need not be given.
	Path string
	// Source is a file on this machine whose content this one has.
	Source string
	// Data is the content itself.
	Data []byte
	// Link is where a symbolic link leads.
	Link string
	// Dir is true for a folder.
	Dir bool
	// Mode holds the permissions: of a file 0644 where zero, of a folder 0755.
	Mode fs.FileMode
}

// A layer is a compressed tar archive in the cache, with its measures.
type layer struct {
	path  string
	facts facts
}

// facts is what an image's manifest and configuration say of a layer.
type facts struct {
	Digest v1.Hash `json:"digest"` // of the compressed archive
	DiffID v1.Hash `json:"diffID"` // of the archive
	Size   int64   `json:"size"`
}

// NewLayer returns a layer of the files, in any order. It is kept in the folder
// dir under the name slot and a hash of its content, so that it is compressed
// once; a layer that an earlier call left in the same slot with other content is
// removed. Callers keep others out of dir while they use the layer.
func NewLayer(dir, slot string, files []File) (v1.Layer, error) {
	files, err := arrange(files)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", slot, err)
	}
	key, err := contentKey(files)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", slot, err)
	}
	l := &layer{path: filepath.Join(dir, slot+"-"+key+".tar.gz")}
	if l.recall() {
		return l, nil
	}
	if err := l.clear(dir, slot); err != nil {
		return nil, fmt.Errorf("layer %s: %w", slot, err)
	}
	if err := l.make(files); err != nil {
		return nil, fmt.Errorf("layer %s: %w", slot, err)
	}
	return l, nil
}

// arrange adds the folders that lead to files and sorts the whole by path.
func arrange(files []File) ([]File, error) {
	byPath := map[string]File{}
	for _, file := range files {
		if !fs.ValidPath(file.Path) || file.Path == "." {
			return nil, fmt.Errorf("file %q: the path is not relative to the root, or not clean", file.Path)
		}
		if _, ok := byPath[file.Path]; ok {
			return nil, fmt.Errorf("file %q is given twice", file.Path)
		}
		byPath[file.Path] = file
	}
	for _, file := range files {
		for dir := path.Dir(file.Path); dir != "."; dir = path.Dir(dir) {
			if above, ok := byPath[dir]; ok && !above.Dir {
				return nil, fmt.Errorf("file %q lies below %q, which is no folder", file.Path, dir)
			}
			if _, ok := byPath[dir]; !ok {
				byPath[dir] = File{Path: dir, Dir: true}
			}
		}
	}
	arranged := make([]File, 0, len(byPath))
	for _, file := range byPath {
		arranged = append(arranged, file)
	}
	slices.SortFunc(arranged, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return arranged, nil
}

// contentKey returns a name for all that goes into a layer. It is written out as
// JSON lines, so that no two different lists have the same text.
func contentKey(files []File) (string, error) {
	hash := sha256.New()
	out := json.NewEncoder(hash)
	for _, file := range files {
		if file.Source != "" {
			sum, err := sumFile(file.Source)
			if err != nil {
				return "", err
			}
			file.Source = sum
		}
		if err := out.Encode(file); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(hash.Sum(nil)[:8]), nil
}

func sumFile(name string) (string, error) {
	file, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// recall reports whether the layer lies in the cache, whole, and takes up its
// facts. They are written last, so where they are the archive is too.
func (l *layer) recall() bool {
	text, err := os.ReadFile(l.path + ".json")
	if err != nil || json.Unmarshal(text, &l.facts) != nil {
		return false
	}
	info, err := os.Stat(l.path)
	return err == nil && info.Size() == l.facts.Size
}

// clear removes what the slot held before.
func (l *layer) clear(dir, slot string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// The key has 16 digits: "a-*" alone would take "a-b" along.
	old, err := filepath.Glob(filepath.Join(dir, slot+"-"+strings.Repeat("[0-9a-f]", 16)+".tar.gz*"))
	if err != nil {
		return err
	}
	for _, name := range old {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	return nil
}

// make writes the archive. The fastest compression is a tenth larger than the
// default one and takes a quarter of the time; not compressing at all would
// push and store three times as much.
func (l *layer) make(files []File) error {
	out, err := os.Create(l.path)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	digest, diffID := sha256.New(), sha256.New()
	zip, err := gzip.NewWriterLevel(io.MultiWriter(out, digest), gzip.BestSpeed)
	if err != nil {
		return err
	}
	archive := tar.NewWriter(io.MultiWriter(zip, diffID))
	for _, file := range files {
		if err := appendFile(archive, file); err != nil {
			return fmt.Errorf("file %s: %w", file.Path, err)
		}
	}
	if err := errors.Join(archive.Close(), zip.Close(), out.Close()); err != nil {
		return err
	}
	info, err := os.Stat(l.path)
	if err != nil {
		return err
	}
	l.facts = facts{
		Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(digest.Sum(nil))},
		DiffID: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(diffID.Sum(nil))},
		Size:   info.Size(),
	}
	text, err := json.Marshal(l.facts)
	if err != nil {
		return err
	}
	return os.WriteFile(l.path+".json", text, 0o644)
}

// appendFile writes a file with root as its owner and no time, so that nothing
// of this machine or moment enters the archive.
func appendFile(archive *tar.Writer, file File) error {
	header := &tar.Header{Name: file.Path, Mode: int64(file.Mode.Perm()), Format: tar.FormatPAX}
	switch {
	case file.Dir:
		header.Typeflag, header.Name = tar.TypeDir, file.Path+"/"
		if header.Mode == 0 {
			header.Mode = 0o755
		}
		return archive.WriteHeader(header)
	case file.Link != "":
		header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, file.Link, 0o777
		return archive.WriteHeader(header)
	}
	header.Typeflag = tar.TypeReg
	if header.Mode == 0 {
		header.Mode = 0o644
	}
	if file.Source == "" {
		header.Size = int64(len(file.Data))
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		_, err := archive.Write(file.Data)
		return err
	}
	in, err := os.Open(file.Source)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	header.Size = info.Size()
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(archive, in)
	return err
}

// Digest implements v1.Layer.
func (l *layer) Digest() (v1.Hash, error) { return l.facts.Digest, nil }

// DiffID implements v1.Layer.
func (l *layer) DiffID() (v1.Hash, error) { return l.facts.DiffID, nil }

// Size implements v1.Layer.
func (l *layer) Size() (int64, error) { return l.facts.Size, nil }

// MediaType implements v1.Layer.
func (l *layer) MediaType() (types.MediaType, error) { return types.OCILayer, nil }

// Compressed implements v1.Layer.
func (l *layer) Compressed() (io.ReadCloser, error) { return os.Open(l.path) }

// Uncompressed implements v1.Layer.
func (l *layer) Uncompressed() (io.ReadCloser, error) {
	file, err := os.Open(l.path)
	if err != nil {
		return nil, err
	}
	zip, err := gzip.NewReader(file)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{zip, file}, nil
}
