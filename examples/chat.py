"""One chat turn with the built-in model, encrypted, and what it cost."""

import veil

source = veil.load_model("smollm2")
question = [{"role": "user", "content": "Name three primary colours."}]
inputs = source.tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)

hybrid = veil.HybridFHEModel(source.model, veil.linear_modules(source.model))
hybrid.compile_model(inputs["input_ids"])
hybrid.set_fhe_mode("execute")
output = hybrid.model.generate(**inputs, max_new_tokens=32, do_sample=False)

print(source.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
print(hybrid.stats)
