package local

import "strings"

func containsText(err error, text string) bool { return strings.Contains(err.Error(), text) }
