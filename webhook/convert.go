package webhook

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/outrigger-mesh/outrigger/internal/api/conversion"
)

// PathConvert is where the API server has SMI objects said in another version.
const PathConvert = "/convert"

// maxConversion is more than an API server asks for at once: all objects of a kind,
// when somebody lists them in a version that is not the stored one.
const maxConversion = 64 << 20

// convert answers a ConversionReview. It knows no namespace and no cluster: it says
// the same thing in other words, or that it cannot.
func (h handler) convert(w http.ResponseWriter, r *http.Request) {
	var review apiextensionsv1.ConversionReview
	fault := read(w, r, maxConversion, &review)
	if fault == nil && (review.Request == nil || review.APIVersion != apiextensionsv1.SchemeGroupVersion.String() || review.Kind != "ConversionReview") {
		fault = &refusal{http.StatusBadRequest, fmt.Sprintf("read conversion review: got %s %s, want %s ConversionReview with a request", review.APIVersion, review.Kind, apiextensionsv1.SchemeGroupVersion)}
	}
	if fault != nil {
		h.refuse(w, r, fault)
		return
	}
	response := &apiextensionsv1.ConversionResponse{UID: review.Request.UID, Result: metav1.Status{Status: metav1.StatusSuccess}}
	converted, err := convertAll(review.Request.Objects, review.Request.DesiredAPIVersion)
	if err != nil {
		response.Result = metav1.Status{Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid, Message: err.Error()}
	} else {
		response.ConvertedObjects = converted
	}
	h.respond(w, string(response.UID), apiextensionsv1.ConversionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: apiextensionsv1.SchemeGroupVersion.String(), Kind: "ConversionReview"}, Response: response,
	})
}

// convertAll converts all objects or none.
func convertAll(objects []runtime.RawExtension, desired string) ([]runtime.RawExtension, error) {
	want, err := schema.ParseGroupVersion(desired)
	if err != nil {
		return nil, fmt.Errorf("read the desired version: %w", err)
	}
	converted := make([]runtime.RawExtension, 0, len(objects))
	for _, raw := range objects {
		o := &unstructured.Unstructured{}
		if err := json.Unmarshal(raw.Raw, o); err != nil {
			return nil, fmt.Errorf("decode object: %w", err)
		}
		if group := o.GroupVersionKind().Group; group != want.Group {
			return nil, fmt.Errorf("convert %s %s/%s: it is of group %s, not %s", o.GetKind(), o.GetNamespace(), o.GetName(), group, want.Group)
		}
		out, err := conversion.Convert(o, want.Version)
		if err != nil {
			return nil, err
		}
		text, err := out.MarshalJSON()
		if err != nil {
			return nil, fmt.Errorf("encode %s %s/%s: %w", o.GetKind(), o.GetNamespace(), o.GetName(), err)
		}
		converted = append(converted, runtime.RawExtension{Raw: []byte(strings.TrimSuffix(string(text), "\n"))})
	}
	return converted, nil
}
