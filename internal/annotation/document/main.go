// Command document writes the page about labels and annotations, docs/annotations.md.
package main

import (
	"fmt"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
)

func main() { fmt.Print(annotation.Document()) }
