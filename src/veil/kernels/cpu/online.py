import numpy as np
from veil.kernels import reference
from veil.kernels.interface import Rows, Scaling
K=reference.ReferenceKernels()
def encrypt(x,div,target,fixed,mat,first,col,bits,th,data,tau,shown):
    d,s=K.encrypt(x,Scaling(None if not div.size else div,None,None,target,fixed),[Rows(mat,first,len(x))],col,bits); data[:]=d; shown[:]=s
def answer(data,w,mat,first,col,up,down,th,out): out[:]=K.answer(data,w,[Rows(mat,first,len(data))],col,(up,down))
def decrypt(data,mat,first,col,bits,shown,scale,bias,th,y): y[:]=K.decrypt(data,Scaling(None,scale,bias,0,0),[Rows(mat,first,len(data))],col,bits,shown)
def read_lines(f,a,b): return 0
