package cache_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/outrigger-mesh/outrigger/e2e/images/cache"
)

func TestOnceFillsOnceAmongMany(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "entry")
	var fills atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			err := cache.Once(t.Context(), dir, func(tmp string) error {
				fills.Add(1)
				return os.WriteFile(filepath.Join(tmp, "f"), []byte("whole"), 0o600)
			})
			if err != nil {
				t.Errorf("Once: %v", err)
			}
			if got, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(got) != "whole" {
				t.Errorf("after Once the entry holds %q, %v; want \"whole\"", got, err)
			}
		})
	}
	wg.Wait()
	if got := fills.Load(); got != 1 {
		t.Errorf("filled %d times, want 1", got)
	}
}

func TestOnceLeavesNothingOfAFailedFill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "entry")
	// What a process that was killed while filling leaves behind.
	if err := os.MkdirAll(filepath.Join(dir+".partial", "stale"), 0o755); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	err := cache.Once(t.Context(), dir, func(tmp string) error {
		if _, err := os.Stat(filepath.Join(tmp, "stale")); err == nil {
			t.Error("fill was given the remains of an earlier run")
		}
		return broken
	})
	if !errors.Is(err, broken) {
		t.Fatalf("Once: got %v, want %v", err, broken)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("a failed fill left an entry")
	}
	if err := cache.Once(t.Context(), dir, func(string) error { return nil }); err != nil {
		t.Errorf("Once after a failure: %v", err)
	}
}

func TestLockIsGivenUpWithTheContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := cache.Lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := cache.Lock(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("second Lock: got %v, want %v", err, context.Canceled)
	}
	unlock()
	again, err := cache.Lock(t.Context(), path)
	if err != nil {
		t.Fatalf("Lock after unlock: %v", err)
	}
	again()
}
