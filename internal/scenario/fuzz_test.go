package scenario

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/outrigger-mesh/outrigger/internal/ingest"
)

// FuzzBuild hunts for objects that make Build panic. The API server refuses many
// of them, but manifests are checked without one too.
func FuzzBuild(f *testing.F) {
	stories, err := filepath.Glob("testdata/*/in.yaml")
	if err != nil || len(stories) == 0 {
		f.Fatalf("find stories: %d, %v", len(stories), err)
	}
	for _, s := range stories {
		data, err := os.ReadFile(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	opts, err := options("testdata")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		objs, err := Decode(data)
		if err != nil {
			return
		}
		snap, _ := ingest.Build(objs, opts)
		for _, id := range snap.Proxies() {
			if _, ok := snap.View(id); !ok {
				t.Errorf("proxy %s has no view", id)
			}
		}
	})
}
