from veil.kernels import reference
def pack(values,out,bits): out[:]=reference.pack(values,bits)
def unpack(data,out,bits): out[:]=reference.unpack(data,out.shape[1],bits)
