package xds_test

import (
	"os"
	"testing"

	"github.com/outrigger-mesh/outrigger/internal/golden"
)

func TestMain(m *testing.M) { os.Exit(golden.CheckStale(m, "testdata")) }
